"""What comes between a chip and its release: the server, the network, somebody in the middle."""

import json
import re
import secrets
from dataclasses import replace

import pytest

from beacon_ota.images import boards
from tests.chip.chip import ELSEWHERE, SSID
from tests.chip.scene import BOARD, OLD
from tests.system.middle import Answer, Request, bent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SECTOR = 4096


def test_a_signature_that_is_none(scene):
    """Refused before one byte is downloaded; the right one is taken."""
    middle = scene.between()
    beacon = scene.beacon(port=middle.port)
    middle.key = beacon.key

    def forge(request: Request, answer: Answer) -> Answer:
        if request.kind != "poll" or answer.status != 200:
            return answer
        envelope = json.loads(answer.body)["manifest"]
        envelope["signatures"][0]["sig"] = bent(envelope["signatures"][0]["sig"])
        return answer.offer(manifest=envelope)

    middle.change = forge
    new = scene.shelf.release("4.1.0")
    firmware = scene.publish(new, beacon)
    failed = beacon.ended(firmware)
    assert (failed["result"], failed["failed_in"], failed["code"]) == (
        "failed",
        "verify",
        "signature",
    ), failed
    assert not any(request.kind == "download" for request, _ in middle.seen)
    middle.change = None
    beacon.runs(new.version)


def test_an_encrypted_release(scene):
    fleet = secrets.token_bytes(16)
    beacon = scene.beacon(settings={"fleet_key": fleet})
    new = scene.shelf.sealed("4.2.0", fleet)
    plain = scene.shelf.release("4.2.0").image
    assert new.image != plain
    done = beacon.ended(scene.publish(new, beacon))
    assert done["result"] == "success", done
    assert written(beacon.chip, plain) == len(plain)


def test_the_orchestrator_dies_in_the_middle(scene):
    """The download goes on where it was, within the same attempt."""
    beacon = scene.beacon(policy={"backoff_ms": 3000})
    new = scene.shelf.release("4.3.0")
    firmware = scene.publish(new, beacon)
    beacon.chip.until(lambda: written(beacon.chip, new.image) > len(new.image) // 4, "a quarter")
    scene.server.kill()
    assert written(beacon.chip, new.image) < len(new.image)
    beacon.chip.says("download: ")
    scene.server.start()
    done = beacon.ended(firmware)
    assert done["result"] == "success", done
    assert len(beacon.attempts(firmware)) == 1
    ends = re.findall(r"^download: .* at (\d+)$", beacon.chip.console, re.MULTILINE)
    assert ends and min(int(end) for end in ends) > len(new.image) // 4


def test_a_server_in_trouble(scene):
    """500 is tried again; 404 ends the attempt, and the next one is a new one."""
    middle = scene.between()
    beacon = scene.beacon(port=middle.port)
    middle.key = beacon.key
    words = [500, 503, 404]

    def refuse(request: Request, answer: Answer) -> Answer:
        if request.kind != "download" or not words:
            return answer
        return Answer(words.pop(0), {}, b"{}")

    middle.change = refuse
    firmware = scene.publish(scene.shelf.release("4.4.0"), beacon)
    failed = beacon.ended(firmware)
    assert (failed["result"], failed["failed_in"], failed["code"]) == (
        "failed",
        "download",
        "http",
    ), failed
    assert "404" in failed["detail"] and not words
    beacon.runs("4.4.0")
    assert sorted(a["result"] for a in beacon.attempts(firmware)) == ["failed", "success"]


def test_another_image(scene):
    """Bytes that nobody signed are not armed, however right their headers are."""
    middle = scene.between()
    beacon = scene.beacon(port=middle.port)

    def swap(request: Request, answer: Answer) -> Answer:
        if request.kind != "download" or answer.status != 200:
            return answer
        body = bytearray(answer.body)
        body[len(body) // 2] ^= 1
        return replace(answer, body=bytes(body))

    middle.change = swap
    firmware = scene.publish(scene.shelf.release("4.5.0"), beacon)
    failed = beacon.ended(firmware)
    assert (failed["failed_in"], failed["code"]) == ("verify", "checksum"), failed
    middle.change = None
    beacon.runs("4.5.0")


def test_no_wifi_at_boot(scene):
    """It goes on looking, without a reset; the second network it was given will do, too."""
    beacon = scene.beacon(settings={"wifi_ssid": ELSEWHERE}, policy={"join_s": 5})
    beacon.chip.says("journal: wifi no_ap")
    assert beacon.shown["last_seen"] is None and beacon.chip.resets == ["POWERON"]
    beacon.chip.power_cut()
    beacon.chip.set("wifi2_ssid", SSID)
    beacon.chip.power_on()
    beacon.runs(OLD)
    assert ("wifi", "no_ap") in [(e["stage"], e["code"]) for e in beacon.shown["journal"]]


def test_bluetooth_that_crashes_the_chip(scene):
    """The emulator has no Bluetooth, and the core panics over it: the beacon does without, works
    and is updated."""
    beacon = scene.beacon(policy={"bluetooth": 1})
    beacon.runs(OLD)
    assert beacon.chip.panics == 1 and len(beacon.chip.resets) == 2
    assert beacon.chip.console.count("journal: ble skipped") == 1
    done = beacon.ended(scene.publish(scene.shelf.release("4.6.0"), beacon))
    assert done["result"] == "success", done
    assert beacon.chip.panics == 1


def written(chip, image: bytes) -> int:
    """Return how many bytes of an image are in the second slot, whole sectors only."""
    slot = boards.load_board(BOARD).table.slots[1]
    content = chip.content[slot.offset : slot.end]
    for at in range(0, len(image), SECTOR):
        if content[at : at + SECTOR][: len(image) - at] != image[at : at + SECTOR]:
            return at
    return len(image)
