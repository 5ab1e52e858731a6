"""Which connections are open, and which one goes when there are too many.

A connection is *unproven* until a right signature, token or session came over it. Unproven ones
are few per address and few in all, and the oldest makes room for the newest: somebody who opens
connections and says nothing displaces their own. A building behind one NAT address, or a proxy in
front of us, is not held up by that: what has proven itself does not count towards the address.

Beacons never take the whole table: a reserve stays for those who administer. A beacon beyond its
share is answered, and its connection closed after the answer.
"""

import ipaddress
import resource
from typing import Protocol

from beacon_ota.orchestrator.limits import LIMITS

BEACON = "beacon"
ADMINISTRATOR = "administrator"
_CAPACITY_MIN = 16


class TrackedConnection(Protocol):
    """What the table knows of a connection."""

    address: str

    @property
    def idle(self) -> bool: ...

    def drop(self) -> None: ...


class ConnectionTable:
    """The table of one process.

    Args:
        capacity: connections at once; by default as many as limits and open files allow.
    """

    def __init__(self, capacity: int | None = None):
        self.capacity = connection_capacity()[0] if capacity is None else capacity
        reserved = min(LIMITS.connections_reserved, self.capacity // 4)
        self._for_beacons = self.capacity - reserved
        self._unproven: dict[TrackedConnection, None] = {}  # oldest first, like those below
        self._by_address: dict[str, dict[TrackedConnection, None]] = {}
        self._beacons: dict[TrackedConnection, None] = {}
        self._administrators: dict[TrackedConnection, None] = {}

    def __len__(self) -> int:
        return len(self._unproven) + len(self._beacons) + len(self._administrators)

    def admit(self, connection: TrackedConnection) -> bool:
        """Enter a new connection; another one may go for it. False: it was dropped itself."""
        of_network = self._by_address.get(network_of(connection.address), {})
        if len(of_network) >= LIMITS.connections_unproven_per_address:
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
        """Note that a connection has shown who it is; False: there is no room for it to stay."""
        if connection in self._administrators or connection in self._beacons:
            return True
        if connection not in self._unproven:
            return False  # dropped a moment ago
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
        """Let an unproven connection go on as another object; False when it had to leave."""
        if before not in self._unproven:
            return False
        self.remove(before)
        after.address = before.address
        self._add(after)
        return True

    def remove(self, connection: TrackedConnection) -> None:
        """Take a connection out; one that is not there is no error."""
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
    """Return how many connections fit into the open files we may have, and how many may queue."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return LIMITS.connections, LIMITS.backlog
    files = max(soft - LIMITS.own_files, 2 * _CAPACITY_MIN)
    capacity = min(LIMITS.connections, max(files * 3 // 4, _CAPACITY_MIN))
    return capacity, min(LIMITS.backlog, max(files - capacity, _CAPACITY_MIN))


def network_of(address: str) -> str:
    """Return what counts as one address: an IPv4 address, the /64 of an IPv6 one."""
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(found.ipv4_mapped or ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))
