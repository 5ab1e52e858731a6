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
from beacon_ota.virtual.radio.medium import Air, links_of
from beacon_ota.virtual.radio.capture import Capture
from beacon_ota.virtual.radio.selection import ROOM
from beacon_ota.virtual.radio.controller import RoomController
from beacon_ota.virtual.radio.interfaces import Conditions, Place, Timers
from beacon_ota.virtual.radio.link import TIMEOUT
from beacon_ota.virtual.radio.transport import Port, RadioHost, Remote, attach
from beacon_ota.virtual.reactor import Reactor

if TYPE_CHECKING:
    from beacon_ota.virtual.radio.backend import RoomBackend

MAX_RADIOS = 512
CALL_TIMEOUT_S = 30.0
_CENTRALS = 0x02B1E0000000  # locally administered addresses for those who bring none

T = TypeVar("T")


class Room:
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
        self._places: dict[hci.Address, Place] = {}
        self._centrals = 0
        self._air: Air | None = None
        self._server: asyncio.Server | None = None
        self.reactor = Reactor.shared()

    @property
    def spec(self) -> str:
        """What ``--radio`` and ``BEACON_OTA_RADIO`` take to join this room."""
        return f"{ROOM}{self.path}"

    # Life

    def start(self) -> Self:
        """Begin, if it has not.

        Raises:
            ReachError: ``radio_taken`` when a room listens there; ``radio_socket`` when the
                socket cannot be made.
        """
        if self._server is None:
            self.reactor.run(self._open())
        return self

    def close(self) -> None:
        """End: every radio goes silent."""
        if self._server is not None:
            self.reactor.call(self._shut)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def _open(self) -> None:
        self._air = Air(seed=self._seed, timers=self._timers)
        loop = asyncio.get_running_loop()
        if await _answers(self.path):
            raise ReachError("radio_taken", f"Another virtual radio runs at {self.path}.")
        try:
            # replaces a socket that was left behind by a process that was killed
            self._server = await loop.create_unix_server(
                lambda: Port(self._enter_central, self.leave), str(self.path)
            )
        except OSError as error:
            raise ReachError(
                "radio_socket", f"No radio socket at {self.path}.", found=str(error)
            ) from error

    def _shut(self) -> None:
        server, self._server = self._server, None
        assert server is not None
        server.close()
        for controller in tuple(self.air.controllers):
            assert isinstance(controller, RoomController)
            if isinstance(controller.host, Port):
                controller.host.close()
            self.leave(controller)
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
    def air(self) -> Air:
        assert self._air is not None, "the room has not been started"
        return self._air

    def enter(self, address: hci.Address, sink: Any = None) -> RoomController:
        """A radio with this public address comes in (in the room's thread)."""
        if len(self.air.controllers) >= MAX_RADIOS:
            raise ReachError("radio_full", f"{MAX_RADIOS} radios are the room's limit.")
        place = self._places.setdefault(address, Place())
        controller = RoomController(self.air, address, place, sink)
        controller.on_moved = lambda new: self._moved(controller, new)
        return controller

    def leave(self, controller: RoomController) -> None:
        """A radio goes silent (in the room's thread); its peers will time out."""
        self.air.remove_controller(controller)

    def radio(self) -> "Here":
        """A radio for a :class:`~.peripheral.Peripheral` that runs in the room's thread."""
        return Here(self)

    def backend(self) -> "RoomBackend":
        """A backend for ``VirtualBeacon(..., bluetooth=room.backend())``."""
        from beacon_ota.virtual.radio.backend import RoomBackend

        return RoomBackend(self.radio())

    def _enter_central(self, port: Port) -> RoomController:
        self._centrals += 1
        address = (_CENTRALS + self._centrals).to_bytes(6, "little")
        return self.enter(hci.Address(address, hci.Address.PUBLIC_DEVICE_ADDRESS), port)

    def _moved(self, controller: RoomController, address: hci.Address) -> None:
        controller.place = self._places.setdefault(address, Place())

    # What happens to the air

    def place(
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
            place = self._places.setdefault(_address(address), Place())
            place.x, place.y, place.z = x, y, z
            place.tx_power, place.loss = tx_power, loss
            self.air.recheck()

        self.call(body)

    def conditions(self, **changes: Any) -> Conditions:
        """Change fields of :class:`~.air.Conditions`; return them as they are now."""

        def body() -> Conditions:
            self.air.conditions = replace(self.air.conditions, **changes)
            self.air.recheck()
            return self.air.conditions

        return self.call(body)

    def disconnect(self, address: str, after: int = 0) -> int:
        """Break the links of a radio, now or after ``after`` more packets; return how many."""

        def body() -> int:
            links = links_of(self.air.links, address)
            for link in links:
                if after:
                    link.fuse = after
                else:
                    link.lose(TIMEOUT)
            return len(links)

        return self.call(body)

    def capture(self, limit: int = 100_000) -> Capture:
        """Begin to record everything on the air; the frames are in what is returned."""
        capture = Capture(limit)
        self.call(self.air.record, capture)
        return capture

    def stop_capture(self) -> None:
        """End the recording."""
        self.call(self.air.record, None)

    def radios(self) -> list[dict[str, Any]]:
        """What is in the room: address, advertising, scanning, number of links; sorted."""

        def body() -> list[dict[str, Any]]:
            found = []
            for controller in self.air.controllers:
                assert isinstance(controller, RoomController)
                address = controller.public_address.to_string(False)
                found.append(
                    {
                        "address": address,
                        "advertising": controller.advertiser.enabled,
                        "scanning": controller.scanning,
                        "links": len(links_of(self.air.links, address)),
                    }
                )
            return sorted(found, key=lambda radio: radio["address"])

        return self.call(body)


class RemoteRoom:
    """A room of another process, for beacons of this one.

    Args:
        path: of its socket.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def spec(self) -> str:
        """As :attr:`Room.spec`."""
        return f"{ROOM}{self.path}"

    def backend(self) -> "RoomBackend":
        """As :meth:`Room.backend`."""
        from beacon_ota.virtual.radio.backend import RoomBackend

        return RoomBackend(Remote(str(self.path)))

    def close(self) -> None:
        """Nothing: the room is not ours, and beacons leave it by themselves."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def at(path: Path) -> Room | RemoteRoom:
    """The room at this path: another process's that runs there, or a new one.

    Raises:
        ReachError: ``radio_socket`` when there can be none.
        UsageError: ``radio_path`` when the path is too long.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return Room(path).start()
    return RemoteRoom(path)


class Here:
    """A radio of the room's own process."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._controller: RoomController | None = None

    async def open(self, address: bytes) -> RadioHost:
        """Come in with a public address (six bytes as they are written)."""
        public = hci.Address(address[::-1], hci.Address.PUBLIC_DEVICE_ADDRESS)
        self._controller = self._room.enter(public)
        return attach(self._controller)

    def close(self) -> None:
        """Go silent."""
        controller, self._controller = self._controller, None
        if controller is not None:
            self._room.leave(controller)


def _address(text: str) -> hci.Address:
    try:
        return hci.Address(text, hci.Address.PUBLIC_DEVICE_ADDRESS)
    except ValueError as error:
        raise UsageError("radio_address", "Not a Bluetooth address.", found=text) from error


async def _answers(path: Path) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(str(path))
    except OSError:
        return False
    writer.close()
    return True
