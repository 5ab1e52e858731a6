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
from collections.abc import Sequence
from typing import Protocol

from beacon_ota.orchestrator.http.forwarded import Network, among
from beacon_ota.orchestrator.limits import LIMITS

BEACON = "beacon"
ADMINISTRATOR = "administrator"
_LEAST = 16


class Connection(Protocol):
    """What the table knows of a connection."""

    address: str

    @property
    def idle(self) -> bool: ...

    def drop(self) -> None: ...


class Connections:
    """The table of one process.

    Args:
        capacity: connections at once; by default as many as limits and open files allow.
        proxies: those of many clients come from there; they have no limit by address.
    """

    def __init__(self, capacity: int | None = None, proxies: Sequence[Network] = ()):
        self._is_proxy = among(proxies)
        self.capacity = room()[0] if capacity is None else capacity
        reserved = min(LIMITS.connections_reserved, self.capacity // 4)
        self._for_beacons = self.capacity - reserved
        self._unproven: dict[Connection, None] = {}  # oldest first, like those below
        self._by_address: dict[str, dict[Connection, None]] = {}
        self._beacons: dict[Connection, None] = {}
        self._administrators: dict[Connection, None] = {}

    def __len__(self) -> int:
        return len(self._unproven) + len(self._beacons) + len(self._administrators)

    def admit(self, connection: Connection) -> bool:
        """Enter a new connection; another one may go for it. False: it was dropped itself."""
        beside = self._by_address.get(network_of(connection.address), {})
        many = len(beside) >= LIMITS.connections_unproven_per_address
        if many and not self._is_proxy(connection.address):
            self._drop(next(iter(beside)))
        elif len(self._unproven) >= LIMITS.connections_unproven:
            self._drop(next(iter(self._unproven)))
        if len(self) >= self.capacity:
            victim = next(iter(self._unproven), None) or self._idle_beacon()
            if victim is None:
                connection.drop()
                return False
            self._drop(victim)
        self._enter(connection)
        return True

    def _enter(self, connection: Connection) -> None:
        self._unproven[connection] = None
        self._by_address.setdefault(network_of(connection.address), {})[connection] = None

    def prove(self, connection: Connection, kind: str) -> bool:
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
            self.leave(connection)
            self._beacons[connection] = None
        else:
            self.leave(connection)
            self._administrators[connection] = None
        return True

    def replace(self, before: Connection, after: Connection) -> bool:
        """Let an unproven connection go on as another object; False when it had to leave."""
        if before not in self._unproven:
            return False
        self.leave(before)
        after.address = before.address
        self._enter(after)
        return True

    def leave(self, connection: Connection) -> None:
        """Take a connection out; one that is not there is no error."""
        for table in (self._unproven, self._beacons, self._administrators):
            table.pop(connection, None)
        network = network_of(connection.address)
        beside = self._by_address.get(network)
        if beside is not None:
            beside.pop(connection, None)
            if not beside:
                del self._by_address[network]

    def _idle_beacon(self) -> Connection | None:
        return next((one for one in self._beacons if one.idle), None)

    def _drop(self, connection: Connection) -> None:
        self.leave(connection)
        connection.drop()


def room() -> tuple[int, int]:
    """Return how many connections fit into the open files we may have, and how many may queue."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return LIMITS.connections, LIMITS.backlog
    files = max(soft - LIMITS.own_files, 2 * _LEAST)
    capacity = min(LIMITS.connections, max(files * 3 // 4, _LEAST))
    return capacity, min(LIMITS.backlog, max(files - capacity, _LEAST))


def network_of(address: str) -> str:
    """Return what counts as one address: an IPv4 address, the /64 of an IPv6 one."""
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(found.ipv4_mapped or ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))
