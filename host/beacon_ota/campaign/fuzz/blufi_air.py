"""Sends mutated BluFi frames over the virtual radio to a beacon that runs the firmware."""

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass, field
from typing import Any

from beacon_ota.campaign.fuzz.blufi_frames import (
    NAME,
    PIN,
    FrameCase,
    format_case,
    mutate_case,
    proper_conversations,
)
from beacon_ota.errors import BeaconOtaError, ReachError
from beacon_ota.provision import session
from beacon_ota.provision.contact import ATTEMPTS, RETRY_DELAY_S
from beacon_ota.provision.session import Initiator, SecretError
from beacon_ota.wire import blufi, tlv

MAC = bytes.fromhex("7cdfa1001122")


@dataclass
class FuzzResult:
    """The result of a fuzzing run.

    Attributes:
        cases: number of cases, in this process and over the radio.
        air: number of those over the radio.
        steps: coverage edges reached.
        corpus: cases that reached a new edge.
        wrong: violations, each with its case.
    """

    cases: int = 0
    air: int = 0
    steps: int = 0
    corpus: int = 0
    wrong: list[str] = field(default_factory=list)


def fuzz_over_air(seconds: float, seed: int = 1) -> FuzzResult:
    """Send mutations to a virtual beacon: before, in and after the key exchange.

    After each case the beacon must still run, and serve the next client.
    """
    from beacon_ota.campaign.rig import builds
    from beacon_ota.virtual.beacon import VirtualBeacon
    from beacon_ota.virtual.flash.nor import Flash
    from beacon_ota.virtual.net.network import Network
    from beacon_ota.virtual.radio.selection import select_radio
    from beacon_ota.virtual.radio.space import RadioSpace

    network = Network(join_time=0.1, scan_time=0.1)
    network.add_access_point(builds.SSID, builds.PASSWORD)
    given: dict[str, int | bytes] = {
        "beacon_id": b"fuzzed",
        "pin_w": session.enroll_pin(PIN, NAME.encode()),
    }
    with (
        RadioSpace(seed=seed) as room,
        contextlib.closing(Flash(_build_flash(builds.build_release("1.0.0"), given))) as flash,
        VirtualBeacon(flash, mac=MAC, network=network, bluetooth=room.make_backend()) as beacon,
    ):
        beacon.power_on()
        return asyncio.run(
            _fuzz_beacon(seconds, random.Random(seed), beacon, select_radio(room.spec))
        )


def _build_flash(release: bytes, settings: dict[str, int | bytes]) -> bytes:
    from beacon_ota.campaign.rig import builds
    from beacon_ota.images import boards, flash, synthetic

    return flash.build_flash(
        boards.load_board(builds.DEVICE), synthetic.bootloader_image(), release, settings
    )


async def _fuzz_beacon(seconds: float, rng: random.Random, beacon: Any, radio: Any) -> FuzzResult:
    from beacon_ota.provision import scan
    from beacon_ota.provision.client import BlufiClient

    found = FuzzResult()
    end = time.monotonic() + seconds
    talk = list(proper_conversations())
    while time.monotonic() < end or not found.cases:
        stage = rng.choice(("clear", "exchange", "session"))
        case = mutate_case(rng, rng.choice(talk), talk)[: rng.randrange(1, 13)]
        try:
            heard = await scan.find_beacon(radio, NAME, 60)
            async with BlufiClient(heard.device, heard.name, radio) as client:
                await _send_case(client, stage, case, rng)
            await _provision_properly(radio, beacon)
        except (BeaconOtaError, AssertionError) as error:
            found.wrong.append(f"{stage}: {error}: {format_case(case)}")
        found.cases += 1
        if len(beacon.boots) != 1 or "Traceback" in beacon.console:
            ends = [(boot.ended, boot.cause) for boot in beacon.boots]
            output = "".join(boot.console for boot in beacon.boots)
            found.wrong.append(f"{stage}: the beacon failed {ends}: {format_case(case)}\n{output}")
        if found.wrong:
            break
    return found


async def _provision_properly(radio: Any, beacon: Any) -> None:
    """Provision as a proper client does, with retries while the beacon serves another client."""
    from beacon_ota.provision import scan
    from beacon_ota.provision.client import BlufiClient

    for attempt in range(ATTEMPTS):
        heard = await scan.find_beacon(radio, NAME, 60)
        try:
            async with BlufiClient(heard.device, heard.name, radio) as client:
                await client.prove_secret(pin=PIN)
                assert (await client.query_state()).beacon_id == "fuzzed"
                return
        except ReachError:
            if attempt == ATTEMPTS - 1:
                raise
            await asyncio.sleep(RETRY_DELAY_S)
        except SecretError as error:
            if error.code != "too_soon":
                raise
            beacon.skip_time(error.wait)  # an unfinished exchange counts as a guess


async def _send_case(client: Any, stage: str, case: FrameCase, rng: random.Random) -> None:
    """Send the frames of a case; the beacon may disconnect at any time."""
    seq = 0
    if stage == "session":
        await client.prove_secret(pin=PIN)
    elif stage == "exchange":
        link = blufi.Link(False)
        link.send(blufi.NEGOTIATE, Initiator(NAME.encode(), pin=PIN).hello())
        while (frame := link.transmit()) is not None:
            await client._gatt.send(frame)
            seq += 1
    try:
        for frame in case:
            if stage == "session":
                await _send_sealed(client, frame)
            else:
                turn = bytes((seq + frame[2] & 255,)) if len(frame) > 2 else b""
                await client._gatt.send(frame[:2] + turn + frame[3:])
        await client._gatt.receive(rng.choice((0.01, 0.2)))
    except ReachError:
        pass


async def _send_sealed(client: Any, frame: bytes) -> None:
    """Send a frame as a sealed message, except commands that would end the session."""
    kind, data = (frame[0] if frame else blufi.CUSTOM), frame[4:]
    try:
        harmful = kind in _HARMFUL or kind == blufi.CUSTOM and tlv.decode(data)[0] == tlv.FORGET
    except tlv.TlvError:
        harmful = False
    if harmful:
        return
    client._link.send(kind, data)
    while (sealed := client._link.transmit()) is not None:
        await client._gatt.send(sealed)


_HARMFUL = (blufi.CONNECT, blufi.DISCONNECT_BLE)
