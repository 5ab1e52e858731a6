"""A room: radios that can hear each other.

It lives in the event loop that the virtual beacons of a process share; its methods may be called
from any other thread. Its socket lets other processes in: each connection speaks HCI and is a radio
of its own (:mod:`.transport`).
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
_CENTRALS = 0x02B1E0000000  # locally administered addresses for those who bring none

T = TypeVar("T")


class RadioSpace:
    """Start with ``with Room() as room`` or :meth:`start`; ``spec`` names it for other processes.

    Args:
        path: of the socket; a temporary one when not given. At most 100 bytes.
        seed: of everything that is random in the air.
        timers: the air's clock, the event loop's when none is given.
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
        """What ``--radio`` and ``BEACON_OTA_RADIO`` take to join this room."""
        return f"{SPACE_PREFIX}{self.path}"

    # Life

    def start(self) -> Self:
        """Begin, if it has not.

        Raises:
            ReachError: ``radio_taken`` when a room listens there; ``radio_socket`` when the
                socket cannot be made.
        """
        if self._server is None:
            self.reactor.run(self._open_socket())
        return self

    def close(self) -> None:
        """End: every radio goes silent."""
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
        """Run a coroutine in the room's thread and return its result."""
        return self.reactor.run(coroutine, timeout)

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function in the room's thread and return its result."""
        return self.reactor.call(function, *args)

    # In the room's thread

    @property
    def medium(self) -> RadioMedium:
        assert self._medium is not None, "the room has not been started"
        return self._medium

    def add_radio(self, address: hci.Address, sink: Any = None) -> SimulatedController:
        """A radio with this public address comes in (in the room's thread)."""
        if len(self.medium.controllers) >= MAX_RADIOS:
            raise ReachError("radio_full", f"{MAX_RADIOS} radios are the room's limit.")
        place = self._positions.setdefault(address, Position())
        controller = SimulatedController(self.medium, address, place, sink)
        controller.on_address_change = lambda new: self._update_position(controller, new)
        return controller

    def remove_radio(self, controller: SimulatedController) -> None:
        """A radio goes silent (in the room's thread); its peers will time out."""
        self.medium.remove_controller(controller)

    def make_radio(self) -> "LocalRadio":
        """A radio for a :class:`~.peripheral.Peripheral` that runs in the room's thread."""
        return LocalRadio(self)

    def make_backend(self) -> "SpaceBackend":
        """A backend for ``VirtualBeacon(..., bluetooth=room.make_backend())``."""
        from beacon_ota.virtual.radio.backend import SpaceBackend

        return SpaceBackend(self.make_radio())

    def _add_central(self, port: HciServer) -> SimulatedController:
        self._centrals += 1
        address = (_CENTRALS + self._centrals).to_bytes(6, "little")
        return self.add_radio(hci.Address(address, hci.Address.PUBLIC_DEVICE_ADDRESS), port)

    def _update_position(self, controller: SimulatedController, address: hci.Address) -> None:
        controller.position = self._positions.setdefault(address, Position())

    # What happens to the air

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
        """Put a radio somewhere, metres; it may be one that comes in later.

        Args:
            address: ``AA:BB:CC:DD:EE:FF``.
            tx_power: dB above or below the others.
            loss: probability that a packet from or to it is lost.
        """

        def body() -> None:
            place = self._positions.setdefault(_parse_address(address), Position())
            place.x, place.y, place.z = x, y, z
            place.tx_power, place.loss = tx_power, loss
            self.medium.recheck_links()

        self.call(body)

    def set_conditions(self, **changes: Any) -> Conditions:
        """Change fields of :class:`~.medium.Conditions`; return them as they are now."""

        def body() -> Conditions:
            self.medium.conditions = replace(self.medium.conditions, **changes)
            self.medium.recheck_links()
            return self.medium.conditions

        return self.call(body)

    def break_links(self, address: str, after: int = 0) -> int:
        """Break the links of a radio, now or after ``after`` more packets; return how many."""

        def body() -> int:
            links = find_links(self.medium.links, address)
            for link in links:
                if after:
                    link.packets_until_break = after
                else:
                    link.break_link(SUPERVISION_TIMEOUT)
            return len(links)

        return self.call(body)

    def start_capture(self, limit: int = 100_000) -> Capture:
        """Begin to record everything on the air; the frames are in what is returned."""
        capture = Capture(limit)
        self.call(self.medium.set_capture, capture)
        return capture

    def stop_capture(self) -> None:
        """End the recording."""
        self.call(self.medium.set_capture, None)

    def list_radios(self) -> list[dict[str, Any]]:
        """What is in the room: address, advertising, scanning, number of links; sorted."""

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
    """A room of another process, for beacons of this one.

    Args:
        path: of its socket.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def spec(self) -> str:
        """As :attr:`Room.spec`."""
        return f"{SPACE_PREFIX}{self.path}"

    def make_backend(self) -> "SpaceBackend":
        """As :meth:`Room.backend`."""
        from beacon_ota.virtual.radio.backend import SpaceBackend

        return SpaceBackend(RemoteRadio(str(self.path)))

    def close(self) -> None:
        """Nothing: the room is not ours, and beacons leave it by themselves."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_space(path: Path) -> RadioSpace | RemoteSpace:
    """The room at this path: another process's that runs there, or a new one.

    Raises:
        ReachError: ``radio_socket`` when there can be none.
        UsageError: ``radio_path`` when the path is too long.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return RadioSpace(path).start()
    return RemoteSpace(path)


class LocalRadio:
    """A radio of the room's own process."""

    def __init__(self, room: RadioSpace) -> None:
        self._space = room
        self._controller: SimulatedController | None = None

    async def open(self, address: bytes) -> RadioHost:
        """Come in with a public address (six bytes as they are written)."""
        public = hci.Address(address[::-1], hci.Address.PUBLIC_DEVICE_ADDRESS)
        self._controller = self._space.add_radio(public)
        return attach_host(self._controller)

    def close(self) -> None:
        """Go silent."""
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
