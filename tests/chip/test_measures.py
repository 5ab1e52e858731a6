"""What the firmware costs a chip: memory and time, as a chip with the real core counts them."""

import json

import pytest

from tests.chip import probes
from tests.chip.scene import OLD

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TURN_US = 100_000
BLOCK = 16 * 1024  # bytes that ESP-IDF has left in one piece: what a TLS or WiFi buffer needs


def test_memory_and_time(scene, request):
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
    nvs = beacon.chip.parts.settings
    assert nvs is not None
    said = {
        **{
            what: probes.first(found, what)
            for what in ("main", "radio", "wifi_on", "wired", "ask", "asked", "idle")
        },
        "signature": probes.most(found, "signature", "us"),
        "download": probes.most(found, "download", "us"),
        "turn": probes.most(found, "turn", "us"),
        "installing": probes.most(found, "installing", "alloc"),
        "heap_free_min": done["heap_free_min"],
        "nvs": {"written": sum(page.written for page in nvs.pages), "pages": len(nvs.pages)},
    }
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n" + "\n".join(f"{name}: {json.dumps(value)}" for name, value in said.items()))
