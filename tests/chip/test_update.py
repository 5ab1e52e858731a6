"""Signed releases, from the orchestrator over WiFi into the slot of a chip, and running."""

import pytest

from beacon_ota import paths
from tests.chip.scene import OLD

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_an_update(scene):
    """Installed, tried, confirmed, reported: flash, orchestrator and console say the same."""
    new = scene.shelf.release("1.1.0")
    beacon = scene.beacon()
    beacon.runs(OLD)
    firmware = scene.publish(new, beacon)
    done = beacon.ended(firmware)
    assert (done["result"], done["trials"], done["bytes"]) == ("success", 1, len(new.image)), done
    beacon.runs("1.1.0")
    beacon.settled()


MODULE = "net/dns.py"


def test_a_hotfix(scene):
    """What is in flash is neither fetched nor written again: the second update is a line more."""
    new = scene.shelf.release("1.1.0")
    text = (paths.data_path("firmware", "app") / MODULE).read_text()
    changed = {MODULE: text + "\n\nFIXED = 1\n"}
    hotfix = scene.shelf.release("1.1.1", changed, like=new)
    beacon = scene.beacon()
    beacon.runs(OLD)
    scene.publish(new, beacon)
    beacon.runs("1.1.0")
    done = beacon.ended(scene.publish(hotfix, beacon))
    assert done["result"] == "success", done
    assert done["bytes_fetched"] <= 24 * 1024 and done["sectors_written"] <= 6, done
    assert done["sectors_kept"] + done["sectors_written"] == len(hotfix.image) // 4096, done
    beacon.runs("1.1.1")
