"""macOS and Windows, as far as bleak's sources tell: their forms of devices, names and errors.

Nothing here runs on these systems; docs/provisioning.md says what was read and what was run.
"""

import asyncio
import json

import pytest
from bleak.backends.device import BLEDevice
from bleak.exc import BleakBluetoothNotAvailableError
from bleak.exc import BleakBluetoothNotAvailableReason as Reason

from beacon_ota.cli import main
from beacon_ota.errors import ReachError
from beacon_ota.provision import flow, scan
from beacon_ota.provision.desired_config import DesiredConfig
from beacon_ota.provision.radio_errors import bluetooth_error
from beacon_ota.virtual.radio import selection
from beacon_ota.virtual.radio.client import SpaceClient, SpaceScanner
from beacon_ota.virtual.radio.selection import RadioSelection, select_radio
from beacon_ota.virtual.radio.space import RadioSpace
from tests.provision import scene as scenes
from tests.provision.commands import WIFI, near
from tests.provision.scene import NAME, PIN, SECRET, scene

UUID = "6F2C9A44-0B1E-4D6A-9E57-2B1A7C3D5E01"


class MacScanner(SpaceScanner):
    """Addresses are hidden, and a device belongs to its event loop."""

    def create_or_update_device(self, key, address, name, details, adv):
        bound = {**details, "loop": asyncio.get_running_loop()}
        return super().create_or_update_device(key, UUID, adv.local_name, bound, adv)


class MacClient(SpaceClient):
    def __init__(self, device, *args, **kwargs):
        assert isinstance(device, BLEDevice), "there are no addresses"
        self.bound = device.details["loop"]
        super().__init__(device, *args, **kwargs)

    async def connect(self, pair: bool, **kwargs) -> None:
        if self.bound is not asyncio.get_running_loop():
            raise RuntimeError("the future belongs to a different loop")
        await super().connect(pair, **kwargs)


class RealSelection(RadioSelection):
    """A room that is treated as an adapter."""

    @property
    def renews(self) -> bool:
        return True


class MacSelection(RealSelection):
    @property
    def remembers(self) -> bool:
        return True


def on_mac(s: scenes.Scene) -> RadioSelection:
    space = str(s.space.path)
    return MacSelection(
        "mac",
        scanner={"backend": MacScanner, "space": space},
        client={"backend": MacClient, "space": space},
        virtual=True,
    )


def test_the_commands_on_macos(v1, server, go, monkeypatch):
    """One event loop finds and connects; the name is waited for, the address is not to be had."""
    with near(v1, server, monkeypatch, settings={"ibeacon": bytes(range(20))}) as s:
        monkeypatch.setattr(selection, "select_radio", lambda choice=None: on_mac(s))
        s.wait(s.opened)
        status = ("provision", "status", "--pin", PIN, "--json", "--search", "30")
        facts = json.loads(go(*status, "--beacon", NAME))
        assert (facts["address"], facts["beacon_id"]) == (UUID, scenes.ID)
        done = json.loads(go("provision", "wifi", "--beacon", NAME, "--pin", PIN, *WIFI, "--json"))
        assert done["poll"] == "ok"
        s.wait(lambda: not s.opened())
        s.unlock()
        go("provision", "reset", "--beacon", NAME[-6:], "--pin", PIN, "--yes", "--search", "30")
        s.wait(lambda: len(s.beacon.boots) == 2)
        assert s.beacon.setting("pin_fail") is None, "a name that is wrong costs a guess"


def test_a_program_that_finds_in_one_loop_and_connects_in_another(v1):
    with scene(v1) as s:
        radio = on_mac(s)
        found = asyncio.run(scan.find_beacon(radio, NAME, 60))
        wanted = DesiredConfig(scenes.WIFI, {"orch_url": "http://orchestrator.local:8080"})
        done = asyncio.run(
            flow.provision_beacon(
                found, radio, flow.fixed_secret(SECRET), wanted, s.book, pace=s.beacon.clock.scale
            )
        )
        assert done.poll == "ok"


def test_windows_remembers_no_services():
    for choice in ("", "hci1"):
        assert select_radio(choice).client["winrt"] == {"use_cached_services": False}


class BrokenScanner(SpaceScanner):
    """Windows raises plain errors of the system."""

    async def start(self) -> None:
        raise OSError(-2147020577, "The device is not ready for use")


class BrokenClient(SpaceClient):
    async def connect(self, pair: bool, **kwargs) -> None:
        raise OSError(-2147023673, "The operation was canceled by the user")


def test_plain_errors_of_windows(v1):
    with scene(v1) as s:
        radio = RadioSelection(
            "windows", scanner={"backend": BrokenScanner, "space": str(s.space.path)}, virtual=True
        )
        with pytest.raises(ReachError) as caught:
            asyncio.run(scan.collect_sightings(radio, 1))
        assert caught.value.code == "bluetooth_off" and "not ready" in str(caught.value.found)
        radio = RadioSelection(
            "windows", s.radio.scanner, {**s.radio.client, "backend": BrokenClient}, virtual=True
        )

        async def body() -> None:
            found = await scan.find_beacon(radio, NAME, 60)
            nobody = DesiredConfig(None)
            await flow.provision_beacon(found, radio, flow.fixed_secret(SECRET), nobody, None)

        with pytest.raises(ReachError) as caught:
            asyncio.run(body())
        assert caught.value.code == "out_of_range"


class SwitchedOff(SpaceScanner):
    """Says nothing when Bluetooth is switched off; the next start does."""

    starts = 0

    async def start(self) -> None:
        SwitchedOff.starts += 1
        if SwitchedOff.starts > 1:
            raise BleakBluetoothNotAvailableError("Bluetooth is off", Reason.POWERED_OFF)
        await super().start()


def test_bluetooth_is_switched_off_in_silence(v1, server, go, monkeypatch):
    """Where nothing tells, the scan that begins anew does: no command listens to nothing."""
    monkeypatch.setattr(scan, "RENEW_S", 0.3)
    with near(v1, server, monkeypatch) as s:
        chosen = RealSelection(
            "windows", scanner={"backend": SwitchedOff, "space": str(s.space.path)}, virtual=True
        )
        monkeypatch.setattr(selection, "select_radio", lambda choice=None: chosen)
        for command in (("provision", "scan", "--seconds", "60"), ("monitor",)):
            SwitchedOff.starts = 0
            said = go(*command, code=3)
            assert "bluetooth_off" in said


def test_nobody_at_all_was_heard(go, monkeypatch, capsys):
    """That may be the computer's fault, and is said."""
    with RadioSpace(seed=1) as space:
        monkeypatch.setenv("BEACON_OTA_RADIO", space.spec)
        with pytest.raises(SystemExit):
            main(["provision", "scan", "--seconds", "0.5", "--json"])
        said = capsys.readouterr()
        assert json.loads(said.out) == [] and "is Bluetooth on?" in said.err
        with pytest.raises(SystemExit) as done:
            main(["provision", "status", "--beacon", NAME, "--search", "0.5"])
        assert done.value.code == 3 and "no other Bluetooth device" in capsys.readouterr().err


def test_permission_on_macos():
    refused = BleakBluetoothNotAvailableError("BLE is not authorized", Reason.DENIED_BY_USER)
    told = bluetooth_error(select_radio(""), refused, "scanning")
    assert told.code == "bluetooth_off" and "settings for privacy" in told.message
    assert told.found == "BLE is not authorized"
