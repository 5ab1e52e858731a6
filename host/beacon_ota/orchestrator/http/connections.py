"""The table of open connections: decides which connection is closed when there are too many.

Rules:
  * A connection is *unproven* until a right signature, token or session came over it.
  * Unproven connections are few per address and few in all; the oldest makes room for the
    newest. A client that opens connections and sends nothing displaces its own.
  * Proven connections do not count towards their address: neither a building behind one NAT
    address nor a reverse proxy is limited.
  * Beacons never take the whole table: a reserve is kept for administrators. A beacon over its
    share gets its answer, and its connection is closed after it.
"""

import ipaddress
import resource
from collections.abc import Sequence
from typing import Protocol

from beacon_ota.orchestrator.http.forwarded import Network, make_membership_test
from beacon_ota.orchestrator.limits import LIMITS

BEACON = "beacon"
ADMINISTRATOR = "administrator"
_CAPACITY_MIN = 16


class TrackedConnection(Protocol):
    """The attributes of a connection that the table needs."""

    address: str

    @property
    def idle(self) -> bool: ...

    def drop(self) -> None: ...


class ConnectionTable:
    """The connections of one process.

    Args:
        capacity: connections at once; by default as many as limits and open files allow.
        proxies: those of many clients come from there; they have no limit by address.
    """

    def __init__(self, capacity: int | None = None, proxies: Sequence[Network] = ()):
        self._is_proxy = make_membership_test(proxies)
        self.capacity = connection_capacity()[0] if capacity is None else capacity
        reserved = min(LIMITS.connections_reserved, self.capacity // 4)
        self._for_beacons = self.capacity - reserved
        self._unproven: dict[TrackedConnection, None] = {}  # all of these: oldest first
        self._by_address: dict[str, dict[TrackedConnection, None]] = {}
        self._beacons: dict[TrackedConnection, None] = {}
        self._administrators: dict[TrackedConnection, None] = {}

    def __len__(self) -> int:
        return len(self._unproven) + len(self._beacons) + len(self._administrators)

    def admit(self, connection: TrackedConnection) -> bool:
        """Add a new connection, dropping another if necessary; False if the new one was dropped."""
        of_network = self._by_address.get(network_of(connection.address), {})
        many = len(of_network) >= LIMITS.connections_unproven_per_address
        if many and not self._is_proxy(connection.address):
            self._drop(next(iter(of_network)))
        elif len(self._unproven) >= LIMITS.connections_unproven:
            self._drop(next(iter(self._unproven)))
        if len(self) >= self.capacity:
            victim = next(iter(self._unproven), None) or self._idle_beacon()
            if victim is None:
                connection.drop()
                return False
            self._drop(victim)
        self._add(connection)
        return True

    def _add(self, connection: TrackedConnection) -> None:
        self._unproven[connection] = None
        self._by_address.setdefault(network_of(connection.address), {})[connection] = None

    def mark_proven(self, connection: TrackedConnection, kind: str) -> bool:
        """Move a connection to the proven ones; False if it must be closed after its answer."""
        if connection in self._administrators or connection in self._beacons:
            return True
        if connection not in self._unproven:
            return False  # was dropped before
        if kind == BEACON:
            if len(self._beacons) >= self._for_beacons:
                victim = self._idle_beacon()
                if victim is None:
                    return False
                self._drop(victim)
            self.remove(connection)
            self._beacons[connection] = None
        else:
            self.remove(connection)
            self._administrators[connection] = None
        return True

    def replace(self, before: TrackedConnection, after: TrackedConnection) -> bool:
        """Replace an unproven connection by another object; False if it was dropped before."""
        if before not in self._unproven:
            return False
        self.remove(before)
        after.address = before.address
        self._add(after)
        return True

    def remove(self, connection: TrackedConnection) -> None:
        """Remove a connection; an unknown one is no error."""
        for table in (self._unproven, self._beacons, self._administrators):
            table.pop(connection, None)
        network = network_of(connection.address)
        of_network = self._by_address.get(network)
        if of_network is not None:
            of_network.pop(connection, None)
            if not of_network:
                del self._by_address[network]

    def _idle_beacon(self) -> TrackedConnection | None:
        return next((one for one in self._beacons if one.idle), None)

    def _drop(self, connection: TrackedConnection) -> None:
        self.remove(connection)
        connection.drop()


def connection_capacity() -> tuple[int, int]:
    """Return (connections, backlog) that the process may have, from its limit of open files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return LIMITS.connections, LIMITS.backlog
    files = max(soft - LIMITS.own_files, 2 * _CAPACITY_MIN)
    capacity = min(LIMITS.connections, max(files * 3 // 4, _CAPACITY_MIN))
    return capacity, min(LIMITS.backlog, max(files - capacity, _CAPACITY_MIN))


def network_of(address: str) -> str:
    """Return the unit that counts as one address: an IPv4 address, the /64 of an IPv6 address."""
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(found.ipv4_mapped or ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))
