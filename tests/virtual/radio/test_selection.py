"""Which radio a central uses, and joining a space from another process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from beacon_ota.errors import UsageError
from beacon_ota.virtual.radio.adapter import format_uuid
from beacon_ota.virtual.radio.client import SpaceClient, SpaceScanner
from beacon_ota.virtual.radio.selection import RADIO_VARIABLE, select_radio
from beacon_ota.virtual.radio.space import RadioSpace
from tests.virtual.radio.beacons import Beacon

PROVISION = """
import asyncio, json
from bleak import BleakClient, BleakScanner
from beacon_ota.virtual.radio.selection import select_radio

async def main():
    chosen = select_radio()
    device = await BleakScanner.find_device_by_filter(
        lambda device, data: data.local_name and data.local_name.startswith("BLUFI_"),
        **chosen.scanner,
    )
    answers = []
    async with BleakClient(device, **chosen.client) as client:
        await client.start_notify("ff02", lambda c, data: answers.append(bytes(data).decode()))
        await client.write_gatt_char("ff01", b"ping", response=True)
        while not answers:
            await asyncio.sleep(0.01)
    print(json.dumps({"address": device.address, "answers": answers, "radio": chosen.name}))

asyncio.run(main())
"""


UNCACHED = {"winrt": {"use_cached_services": False}}


@pytest.mark.parametrize(
    ("system", "on_bluez", "remembers"),
    [("linux", True, True), ("darwin", False, True), ("win32", False, False)],
)
def test_what_reports_of_a_system_mean(monkeypatch, system, on_bluez, remembers) -> None:
    monkeypatch.setattr("sys.platform", system)
    chosen = select_radio("")
    assert (chosen.on_bluez, chosen.remembers) == (on_bluez, remembers)
    room = select_radio("room:/run/radio")
    assert not room.on_bluez and not room.remembers


def test_nothing_said_is_the_default_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RADIO_VARIABLE, raising=False)
    chosen = select_radio()
    assert (chosen.scanner, chosen.client, chosen.virtual) == ({}, UNCACHED, False)


def test_an_adapter_by_name() -> None:
    chosen = select_radio("hci1")
    assert chosen.scanner == {"bluez": {"adapter": "hci1"}} and chosen.adapter == "hci1"
    assert chosen.client == {"bluez": {"adapter": "hci1"}, **UNCACHED}


def test_a_radio_space() -> None:
    chosen = select_radio("room:/run/radio")
    assert chosen.scanner == {"backend": SpaceScanner, "space": "/run/radio"}
    assert chosen.client == {"backend": SpaceClient, "space": "/run/radio"}
    assert chosen.virtual


def test_the_environment_decides_when_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RADIO_VARIABLE, "room:/run/radio")
    assert select_radio().virtual
    assert not select_radio("hci0").virtual
    assert not select_radio("").virtual


@pytest.mark.parametrize("text", ["room:", "/run/radio", "AA:BB:CC:DD:EE:FF", "tcp:host:1"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        select_radio(text)
    assert caught.value.code == "radio_choice"


def test_another_process_joins_through_the_environment(space: RadioSpace) -> None:
    beacon = Beacon(space).start().advertise()
    beacon.on_irq = lambda event, data: (
        beacon.peripheral.send_notification(0, beacon.handles[0][1], b"pong")
        if event == 3
        else None
    )
    result = subprocess.run(
        [sys.executable, "-c", PROVISION],
        env=os.environ | {RADIO_VARIABLE: space.spec},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    answer = json.loads(result.stdout)
    assert answer == {"address": beacon.address, "answers": ["pong"], "radio": space.spec}


def test_a_path_too_long_for_a_socket() -> None:
    with pytest.raises(UsageError) as caught:
        RadioSpace(Path("/" + "x" * 120))
    assert caught.value.code == "radio_path"


def test_uuids_are_written_out() -> None:
    assert format_uuid(b"\xff\xff") == "0000ffff-0000-1000-8000-00805f9b34fb"
    assert format_uuid(b"\x04\x03\x02\x01") == "01020304-0000-1000-8000-00805f9b34fb"
    assert format_uuid(bytes(range(16))) == "0f0e0d0c-0b0a-0908-0706-050403020100"
