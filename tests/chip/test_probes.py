"""What is looked for in the app's sources to put probes there; needs no emulator."""

import pytest

from tests.chip import probes


@pytest.mark.parametrize("task", ["turns", "heap"])
def test_probes_find_their_places(task):
    changed = probes.changes(task)
    assert f"probe.{task}()" in changed["main.py"]
    assert all("probe" in text for text in changed.values())
