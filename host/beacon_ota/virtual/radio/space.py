"""The simulated radio space: radios that receive each other, and a socket for other processes.

The space lives in the event loop that the virtual beacons of a process share; its methods may be
called from any other thread. Each connection to its socket speaks HCI and is one more radio
(:mod:`.transport`). On the command line a space is written ``room:PATH``.
"""

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from bumble import hci

from beacon_ota.errors import ReachError, UsageError
from beacon_ota.virtual.radio.capture import Capture
from beacon_ota.virtual.radio.controller import SimulatedController
from beacon_ota.virtual.radio.interfaces import Conditions, Position, Timers
from beacon_ota.virtual.radio.link import SUPERVISION_TIMEOUT
from beacon_ota.virtual.radio.medium import RadioMedium, find_links
from beacon_ota.virtual.radio.selection import SPACE_PREFIX
from beacon_ota.virtual.radio.transport import HciServer, RadioHost, RemoteRadio, attach_host
from beacon_ota.virtual.reactor import Reactor

if TYPE_CHECKING:
    from beacon_ota.virtual.radio.backend import SpaceBackend

MAX_RADIOS = 512
CALL_TIMEOUT_S = 30.0
_CENTRALS = 0x02B1E0000000  # locally administered addresses for centrals without an address

T = TypeVar("T")


class RadioSpace:
    """A radio space. Start it with ``with RadioSpace() as space`` or :meth:`start`.

    Args:
        path: of the socket, at most 100 bytes; a temporary one by default.
        seed: of every random choice of the medium.
        timers: clock of the medium; the event loop by default.
    """

    def __init__(
        self, path: Path | None = None, *, seed: int | None = None, timers: Timers | None = None
    ) -> None:
        self._folder = tempfile.mkdtemp(prefix="radio-") if path is None else None
        self.path = path or Path(self._folder or "", "room")
        if len(os.fsencode(self.path)) > 100:
            raise UsageError("radio_path", "The path of a radio socket is too long.", found=path)
        self._seed, self._timers = seed, timers
        self._positions: dict[hci.Address, Position] = {}
        self._centrals = 0
        self._medium: RadioMedium | None = None
        self._server: asyncio.Server | None = None
        self.reactor = Reactor.shared()

    @property
    def spec(self) -> str:
        """The value of ``--radio`` and ``BEACON_OTA_RADIO`` that joins this space."""
        return f"{SPACE_PREFIX}{self.path}"

    # Life

    def start(self) -> Self:
        """Open the socket, unless it is open.

        Raises:
            ReachError: ``radio_taken`` when another space listens at the path;
                ``radio_socket`` when the socket cannot be made.
        """
        if self._server is None:
            self.reactor.run(self._open_socket())
        return self

    def close(self) -> None:
        """Close the socket; every radio falls silent."""
        if self._server is not None:
            self.reactor.call(self._close_socket)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def _open_socket(self) -> None:
        self._medium = RadioMedium(seed=self._seed, timers=self._timers)
        loop = asyncio.get_running_loop()
        if await _is_listening(self.path):
            raise ReachError("radio_taken", f"Another virtual radio runs at {self.path}.")
        try:
            # replaces a socket that was left behind by a process that was killed
            self._server = await loop.create_unix_server(
                lambda: HciServer(self._add_central, self.remove_radio), str(self.path)
            )
        except OSError as error:
            raise ReachError(
                "radio_socket", f"No radio socket at {self.path}.", found=str(error)
            ) from error

    def _close_socket(self) -> None:
        server, self._server = self._server, None
        assert server is not None
        server.close()
        for controller in tuple(self.medium.controllers):
            assert isinstance(controller, SimulatedController)
            if isinstance(controller.host, HciServer):
                controller.host.close()
            self.remove_radio(controller)
        self.path.unlink(missing_ok=True)

    # Calls from other threads

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float = CALL_TIMEOUT_S) -> T:
        """Run a coroutine in the thread of the space and return its result."""
        return self.reactor.run(coroutine, timeout)

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function in the thread of the space and return its result."""
        return self.reactor.call(function, *args)

    # In the thread of the space

    @property
    def medium(self) -> RadioMedium:
        assert self._medium is not None, "the radio space has not been started"
        return self._medium

    def add_radio(self, address: hci.Address, sink: Any = None) -> SimulatedController:
        """Add a radio with this public address (in the thread of the space)."""
        if len(self.medium.controllers) >= MAX_RADIOS:
            raise ReachError("radio_full", f"{MAX_RADIOS} radios are the limit of a radio space.")
        position = self._positions.setdefault(address, Position())
        controller = SimulatedController(self.medium, address, position, sink)
        controller.on_address_change = lambda new: self._update_position(controller, new)
        return controller

    def remove_radio(self, controller: SimulatedController) -> None:
        """Silence a radio (in the thread of the space); its links time out."""
        self.medium.remove_controller(controller)

    def make_radio(self) -> "LocalRadio":
        """Return a radio for a :class:`~.peripheral.Peripheral` in the thread of the space."""
        return LocalRadio(self)

    def make_backend(self) -> "SpaceBackend":
        """Return a backend for ``VirtualBeacon(..., bluetooth=space.make_backend())``."""
        from beacon_ota.virtual.radio.backend import SpaceBackend

        return SpaceBackend(self.make_radio())

    def _add_central(self, port: HciServer) -> SimulatedController:
        self._centrals += 1
        address = (_CENTRALS + self._centrals).to_bytes(6, "little")
        return self.add_radio(hci.Address(address, hci.Address.PUBLIC_DEVICE_ADDRESS), port)

    def _update_position(self, controller: SimulatedController, address: hci.Address) -> None:
        controller.position = self._positions.setdefault(address, Position())

    # Conditions

    def move_radio(
        self,
        address: str,
        x: float = 0.0,
        y: float = 0.0,
        z: float = 0.0,
        *,
        tx_power: int = 0,
        loss: float = 0.0,
    ) -> None:
        """Set the position of a radio, in metres; also of a radio that is added later.

        Args:
            address: ``AA:BB:CC:DD:EE:FF``.
            tx_power: dB above or below the other radios.
            loss: probability that a packet from or to this radio is lost.
        """

        def body() -> None:
            position = self._positions.setdefault(_parse_address(address), Position())
            position.x, position.y, position.z = x, y, z
            position.tx_power, position.loss = tx_power, loss
            self.medium.recheck_links()

        self.call(body)

    def set_conditions(self, **changes: Any) -> Conditions:
        """Change fields of :class:`~.interfaces.Conditions`; return all of them."""

        def body() -> Conditions:
            self.medium.conditions = replace(self.medium.conditions, **changes)
            self.medium.recheck_links()
            return self.medium.conditions

        return self.call(body)

    def break_links(self, address: str, after: int = 0) -> int:
        """Break the links of a radio, now or after ``after`` more packets; return their number."""

        def body() -> int:
            links = find_links(self.medium.links, address)
            for link in links:
                if after:
                    link.packets_until_break = after
                else:
                    link.break_link(SUPERVISION_TIMEOUT)
            return len(links)

        return self.call(body)

    def fail_connections(self, address: str, number: int = 1) -> None:
        """Let the next connections to a radio fail: neither end hears the other (reason 0x3E)."""

        def body() -> None:
            self.medium.failing[_parse_address(address)] = number

        self.call(body)

    def start_capture(self, limit: int = 100_000) -> Capture:
        """Record every frame from now on; return the capture that they go to."""
        capture = Capture(limit)
        self.call(self.medium.set_capture, capture)
        return capture

    def stop_capture(self) -> None:
        """Stop the capture."""
        self.call(self.medium.set_capture, None)

    def list_radios(self) -> list[dict[str, Any]]:
        """Return one row per radio, sorted: address, advertising, scanning, number of links."""

        def body() -> list[dict[str, Any]]:
            found = []
            for controller in self.medium.controllers:
                assert isinstance(controller, SimulatedController)
                address = controller.public_address.to_string(False)
                found.append(
                    {
                        "address": address,
                        "advertising": controller.advertiser.enabled,
                        "scanning": controller.scanning,
                        "links": len(find_links(self.medium.links, address)),
                    }
                )
            return sorted(found, key=lambda radio: radio["address"])

        return self.call(body)


class RemoteSpace:
    """A radio space in another process, for the beacons of this process.

    Args:
        path: of the socket of the space.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def spec(self) -> str:
        """As :attr:`RadioSpace.spec`."""
        return f"{SPACE_PREFIX}{self.path}"

    def make_backend(self) -> "SpaceBackend":
        """As :meth:`RadioSpace.make_backend`."""
        from beacon_ota.virtual.radio.backend import SpaceBackend

        return SpaceBackend(RemoteRadio(str(self.path)))

    def close(self) -> None:
        """Do nothing: the other process owns the space, and each beacon closes its own radio."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_space(path: Path) -> RadioSpace | RemoteSpace:
    """Join the space that another process runs at this path, or start a new one.

    Raises:
        ReachError: ``radio_socket`` when the socket cannot be made.
        UsageError: ``radio_path`` when the path is too long.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return RadioSpace(path).start()
    return RemoteSpace(path)


class LocalRadio:
    """A radio in the process of its space."""

    def __init__(self, space: RadioSpace) -> None:
        self._space = space
        self._controller: SimulatedController | None = None

    async def open(self, address: bytes) -> RadioHost:
        """Add a radio with a public address (six bytes, most significant first)."""
        public = hci.Address(address[::-1], hci.Address.PUBLIC_DEVICE_ADDRESS)
        self._controller = self._space.add_radio(public)
        return attach_host(self._controller)

    def close(self) -> None:
        """Remove the radio."""
        controller, self._controller = self._controller, None
        if controller is not None:
            self._space.remove_radio(controller)


def _parse_address(text: str) -> hci.Address:
    try:
        return hci.Address(text, hci.Address.PUBLIC_DEVICE_ADDRESS)
    except ValueError as error:
        raise UsageError("radio_address", "Not a Bluetooth address.", found=text) from error


async def _is_listening(path: Path) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(str(path))
    except OSError:
        return False
    writer.close()
    return True
