"""The network of virtual beacons: access points, host names, and faults of a link.

A :class:`Network` is shared by the beacons of a site; each has a
:class:`~beacon_ota.virtual.net.link.Link` to it.
"""

import ipaddress
from dataclasses import dataclass, field

GATEWAY = "10.77.0.1"  # gateway and name server
HOSTS = ipaddress.IPv4Address("10.77.2.1")  # the first address given to a name
STATIONS = ipaddress.IPv4Address("10.77.16.2")  # the first address given to a beacon
THROTTLE = 800_000  # bytes per second that a C3 receives over WiFi


@dataclass
class AccessPoint:
    """An access point. ``password`` empty means open; ``visible`` False hides it for good.

    Args:
        refusals: the driver's reasons for a wrong password, in turn: 15 or 204 (the handshake
            times out), 202, 205, or 2 (the authentication expires), as access points differ.
        missed: so many of the next attempts do not hear it.
    """

    ssid: bytes
    password: bytes = b""
    bssid: bytes = b""
    channel: int = 6
    rssi: int = -55
    visible: bool = True
    refusals: tuple[int, ...] = (15,)
    missed: int = 0

    def __post_init__(self) -> None:
        if not self.bssid:
            self.bssid = b"\x02" + (self.ssid + b"\0" * 5)[:5]

    @property
    def security(self) -> int:
        """``WLAN.SEC_…``: open, or WPA2."""
        return 3 if self.password else 0

    def accepts(self, key: bytes) -> bool:
        """Tell whether a station with this key may join."""
        return not self.password or key == self.password


@dataclass
class LinkFaults:
    """The faults of a link. Sizes in bytes, times in seconds of the beacon.

    The four ``…_after`` count the bytes that one connection has brought to the beacon; each acts
    once and is then cleared, unless ``again`` is set.

    Args:
        throttle: bytes per second, all connections together; None for no limit.
        latency: seconds each way.
        loss: share of segments that are lost and arrive late, 0 to 1.
        names: False: name servers do not answer.
        refuse: connections are refused.
        black_hole: connections are neither accepted nor refused.
        stall_after: the connection goes silent.
        reset_after: the connection is reset.
        close_after: the connection is closed early.
        drop_after: WiFi is lost.
        again: the ``…_after`` act on every connection.
    """

    throttle: float | None = THROTTLE
    latency: float = 0.0
    loss: float = 0.0
    names: bool = True
    refuse: bool = False
    black_hole: bool = False
    stall_after: int | None = None
    reset_after: int | None = None
    close_after: int | None = None
    drop_after: int | None = None
    again: bool = False

    def next_fault(self, brought: int) -> tuple[int, str] | None:
        """Return (bytes left, name) of the next ``…_after``, None when none is due."""
        due = [
            (limit - brought, name)
            for name in ("stall_after", "reset_after", "close_after", "drop_after")
            if (limit := getattr(self, name)) is not None and limit >= brought
        ]
        return min(due, default=None)


@dataclass
class Network:
    """The access points in range of the beacons, and the addresses of names.

    Args:
        points: access points.
        hosts: name → real (host, port); port None keeps the requested port.
        services: mDNS service type, e.g. ``_beacon-ota._tcp`` → (host name, port).
        outside: also resolve names that are not in ``hosts``, with this machine's resolver.
        join_time: seconds from connect to an address, or to the failure.
        scan_time: seconds of a scan.
    """

    points: list[AccessPoint] = field(default_factory=list)
    hosts: dict[str, tuple[str, int | None]] = field(default_factory=dict)
    services: dict[str, tuple[str, int]] = field(default_factory=dict)
    outside: bool = False
    join_time: float = 1.2
    scan_time: float = 2.0
    _addresses: dict[str, str] = field(default_factory=dict)
    _stations: int = 0

    def add_access_point(
        self, ssid: str | bytes, password: str | bytes = b"", **more
    ) -> AccessPoint:
        """Add an access point."""
        raw = ssid.encode() if isinstance(ssid, str) else ssid
        key = password.encode() if isinstance(password, str) else password
        point = AccessPoint(raw, key, **more)
        self.points.append(point)
        return point

    @property
    def visible(self) -> list[AccessPoint]:
        """Access points that answer, strongest first."""
        return sorted((p for p in self.points if p.visible), key=lambda p: -p.rssi)

    def find_access_point(self, ssid: bytes, bssid: bytes | None = None) -> AccessPoint | None:
        """Return the strongest access point of this name."""
        for point in self.visible:
            if point.ssid == ssid and bssid in (None, point.bssid):
                return point
        return None

    def set_host(self, name: str, address: str, port: int | None = None) -> None:
        """Map ``name`` to a real address."""
        self.hosts[name.lower()] = (address, port)

    def move_host(self, name: str, address: str, port: int | None = None) -> None:
        """Map ``name`` to a new address; its former address keeps its destination."""
        name = name.lower()
        if name in self._addresses:
            left = f"{name}#{len(self._addresses)}"
            self._addresses[left] = self._addresses.pop(name)
            self.hosts[left] = self.hosts[name]
        self.set_host(name, address, port)

    def next_station(self) -> str:
        """Return the address of one more beacon."""
        self._stations += 1
        return str(STATIONS + self._stations - 1)

    def lookup_name(self, name: str) -> str | None:
        """Return the address that beacons see for a known name."""
        name = name.lower().rstrip(".")
        if name not in self.hosts:
            return None
        if name not in self._addresses:
            self._addresses[name] = str(HOSTS + len(self._addresses))
        return self._addresses[name]

    def real_address(self, address: str, port: int) -> tuple[str, int]:
        """Return the real (host, port) behind an address that beacons see."""
        for name, given in self._addresses.items():
            if given == address and name in self.hosts:
                host, fixed = self.hosts[name]
                return host, port if fixed is None else fixed
        return address, port
