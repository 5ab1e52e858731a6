"""A beacon out of its box, a radio space, and an orchestrator without beacons."""

import asyncio
import contextlib
import functools
import json
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from beacon_ota.provision import flow, scan, session
from beacon_ota.provision.client import BlufiClient
from beacon_ota.provision.desired_config import DesiredConfig, Secret
from beacon_ota.provision.desired_config import Network as Wifi
from beacon_ota.provision.reports import StateReport
from beacon_ota.provision.scan import Sighting
from beacon_ota.virtual.beacon import VirtualBeacon
from beacon_ota.virtual.flash.nor import Flash
from beacon_ota.virtual.net.network import Network
from beacon_ota.virtual.radio.selection import RadioSelection, select_radio
from beacon_ota.virtual.radio.space import RadioSpace
from beacon_ota.wire import adverts
from tests.firmware.beacons import POLICY, image
from tests.firmware.server import Server

T = TypeVar("T")

MAC = bytes.fromhex("7cdfa1a1b2c3")
ADDRESS = "7C:DF:A1:A1:B2:C5"
NAME = "BLUFI_A1B2C5"
ID = "beacon-1"
PIN = "73914826"
POP = b"a proof of possession"
SSID, PASSWORD = "site", "correct horse"
SCALE = 5  # no more: a stall of ours is one of the beacon's, five times as long
PATIENT = {"join_s": 60, "stall_s": 60, "give_up_s": 600}
SECRET = Secret(pin=PIN)
WIFI = Wifi.of(SSID, PASSWORD)


@functools.cache
def enrolled(pin: str = PIN, name: str = NAME) -> bytes:
    return session.enroll_pin(pin, name.encode())


@dataclass
class Book:
    """A registry that tells the orchestrator of the tests."""

    server: Server
    entered: list[tuple[StateReport, bytes, dict]] = field(default_factory=list)

    def register(self, state: StateReport, key: bytes, config, tags) -> str:
        self.entered.append((state, key, dict(config)))
        again = state.beacon_id in self.server.keys
        self.server.keys[state.beacon_id] = key
        return "updated" if again else "registered"


@dataclass
class Scene:
    """Everything a test needs. ``beacon`` is on unless ``power=False``."""

    space: RadioSpace
    server: Server
    network: Network
    flash: Flash
    beacon: VirtualBeacon

    @property
    def radio(self) -> RadioSelection:
        return select_radio(self.space.spec)

    @property
    def book(self) -> Book:
        return Book(self.server)

    def wait(self, condition: Callable[[], object], timeout: float = 60, what: str = "") -> None:
        self.beacon.wait_for(condition, timeout, what)

    async def find(self, *, opened: bool = True, seconds: float = 60) -> Sighting:
        return await scan.find_beacon(self.radio, NAME, seconds, opened=opened)

    @contextlib.asynccontextmanager
    async def client(self, *, mtu: int | None = None, prove: bool = True):
        """Connect to the beacon once it can be provisioned, and prove the PIN."""
        found = await self.find()
        async with BlufiClient(found.device, found.name, self.radio, mtu=mtu) as client:
            if prove:
                await client.prove_secret(pin=PIN)
            yield client

    async def provision(
        self,
        wifi: Wifi | None = WIFI,
        *,
        secret: Secret = SECRET,
        config: Mapping[str, Any] | None = None,
        creds: bytes | None = None,
        bound: frozenset[bytes] = frozenset(),
        book: Book | None = None,
        **options,
    ) -> flow.Outcome:
        """Do what ``beacon-ota provision wifi`` does."""
        found = await self.find()
        settings = {"orch_url": "http://orchestrator.local:8080", **(config or {})}
        return await flow.provision_beacon(
            found,
            self.radio,
            flow.fixed_secret(secret),
            DesiredConfig(wifi, settings, (), creds, bound),
            book or self.book,
            pace=self.beacon.clock.scale,
            **options,
        )

    def online(self, **options) -> flow.Outcome:
        """The same for tests without an event loop; the beacon answers to PIN afterwards."""
        return asyncio.run(self.provision(**options))

    def press(self, seconds: float) -> None:
        """Hold the button until that shows, and for so many of the beacon's seconds."""
        self.beacon.press()
        run(self.heard(lambda b: b.has(adverts.PRESSED)))
        self.skip(seconds)
        time.sleep(0.2 if seconds > 1 else 0)
        self.beacon.release()
        run(self.heard(lambda b: not b.has(adverts.PRESSED)))

    def unlock(self) -> None:
        """Open provisioning with the button: again, if that was no short press."""
        for _ in range(5):
            self.press(0)
            if not self.stays(lambda: not self.opened(), 3):
                return
        raise AssertionError(self.beacon.console)

    def skip(self, seconds: float) -> None:
        """Let the beacon's seconds pass at once, and the orchestrator's."""
        self.beacon.skip_time(seconds)
        self.server.epoch += seconds

    def stays(self, condition: Callable[[], object], seconds: float = 0.5) -> bool:
        """Whether something stays as it is for a while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not condition():
                return False
            time.sleep(0.02)
        return True

    async def heard(
        self, condition: Callable[[Sighting], object], seconds: float = 150
    ) -> Sighting:
        """Listen until an advertisement of the beacon meets the condition.

        A beacon whose orchestrator does not answer at the moment when its client goes stays open
        for ``open_s``, and that may be so when the machine is busy: it is waited for here.
        """
        end = time.monotonic() + seconds
        async with scan.open_scanner(self.radio) as watch:
            while True:
                for one in watch.beacons():
                    if one.address == ADDRESS and condition(one):
                        return one
                if time.monotonic() > end:
                    heard = [one.as_dict() for one in watch.beacons()]
                    raise AssertionError(f"{heard}\n{self.beacon.console}")
                await asyncio.sleep(0.01)

    def joined(self) -> bytes:
        """Return the name of the network the beacon is in, b"" for none."""
        point = self.beacon.wlan.access_point
        return point.ssid if point else b""

    def opened(self) -> bool:
        """Whether the beacon says in its console that it can be provisioned."""
        lines = [x for x in self.beacon.console.splitlines() if x.startswith("provisioning:")]
        return bool(lines) and not lines[-1].endswith("closed")


def run(work: Coroutine[Any, Any, T] | Awaitable[T], seconds: float = 120) -> T:
    """Run a coroutine with a deadline."""

    async def body() -> T:
        async with asyncio.timeout(seconds):
            return await work

    return asyncio.run(body())


@contextlib.contextmanager
def scene(
    built: bytes,
    *,
    settings: Mapping[str, int | bytes | None] | None = None,
    policy: Mapping[str, int] | None = None,
    scale: float = SCALE,
    power: bool = True,
    space: RadioSpace | None = None,
    mac: bytes = MAC,
    pin: str = PIN,
    **options,
) -> Iterator[Scene]:
    """A beacon with a PIN and an id and nothing else, powered on."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(keys={}).run())
        server.scale = scale
        network = Network(join_time=0.5, scan_time=0.5)
        network.add_access_point(SSID, PASSWORD)
        network.set_host("orchestrator.local", "127.0.0.1", server.port)
        space = space or stack.enter_context(RadioSpace(seed=1))
        name = adverts.device_name(mac[:5] + bytes([mac[5] + 2])).decode()
        values: dict[str, int | bytes | None] = {
            "beacon_id": ID.encode(),
            "pin_w": enrolled(pin, name),
            "policy": json.dumps(POLICY | PATIENT | dict(policy or {})).encode(),
        }
        values |= settings or {}
        kept = {key: value for key, value in values.items() if value is not None}
        flash = Flash(image(built, kept))
        stack.callback(flash.close)
        beacon = stack.enter_context(
            VirtualBeacon(
                flash,
                mac=mac,
                network=network,
                scale=scale,
                bluetooth=space.make_backend(),
                **options,
            )
        )
        if power:
            beacon.power_on()
        yield Scene(space, server, network, flash, beacon)
