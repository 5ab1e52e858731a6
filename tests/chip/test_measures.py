"""What the firmware costs a chip: memory and time, as a chip with the real core counts them."""

import pytest

from tests.chip import probes
from tests.chip.scene import OLD

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

KB = 1024
UPDATE = 24 * KB  # bytes of heap that an update may take over idle
LEFT = 16 * KB  # bytes in one piece that ESP-IDF needs for what WiFi does meanwhile
CHECK_US = 250_000  # of a signature, the turns of others included
TURN_US = 250_000  # of the event loop, as long as a door may wait


def test_memory_and_time(scene, tell):
    first = scene.shelf.release(OLD, probes.changes("turns"))
    second = scene.shelf.release("3.1.0", probes.changes("heap"))
    third = scene.shelf.release("3.2.0")
    beacon = scene.beacon(first=first)
    beacon.runs(OLD)
    for release in (second, third):
        done = beacon.ended(scene.publish(release, beacon))
        assert done["result"] == "success", done
    beacon.settled()
    found = probes.read(beacon.chip.console)
    turns = [one.values for one in found if one.what == "turn"]
    nvs = beacon.chip.parts.settings
    assert nvs is not None
    said = {
        **{
            what: probes.first(found, what)
            for what in ("main", "radio", "wifi_on", "wired", "ask", "asked", "idle")
        },
        "signature": probes.first(found, "signature"),  # the other one waits for probes of heap
        "download": probes.most(found, "download", "us"),
        "turn": max(turns, key=lambda turn: turn["us"]),
        "turns": sorted(turn["us"] // 1000 for turn in turns)[::-1][:20],
        "installing": probes.most(found, "installing", "alloc"),
        "heap_free_min": done["heap_free_min"],
        "nvs": {"written": sum(page.written for page in nvs.pages), "pages": len(nvs.pages)},
    }
    for name, values in said.items():
        tell(f"{name}: {values}")
    busy = said["installing"]
    assert busy["alloc"] - probes.most(found, "asked", "alloc")["alloc"] <= UPDATE
    assert min(one.values["block"] for one in found if one.what == "installing") >= LEFT
    assert said["signature"]["us"] <= CHECK_US
    assert said["turn"]["us"] <= TURN_US
