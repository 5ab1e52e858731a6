"""The broken releases of the fault matrix."""

import pytest

from beacon_ota.campaign.faults import matrix, releases
from beacon_ota.campaign.rig import builds
from beacon_ota.errors import UsageError


@pytest.mark.parametrize("image", [value.name for value in matrix.IMAGE if value.ends])
def test_a_broken_release_differs_from_the_app(image):
    changed = releases.changed_files(image)
    assert changed
    for path, text in changed.items():
        assert text != builds.read_source("app", *path.split("/"))
        compile(text, path, "exec")


def test_a_good_release_is_the_app():
    assert releases.changed_files("ok") == {}


def test_a_change_that_does_not_apply_is_named(monkeypatch):
    monkeypatch.setitem(releases._CHANGED, "task", ("main.py", "no such line", "x"))
    with pytest.raises(UsageError) as error:
        releases.changed_files("task")
    assert error.value.code == "fault_text"
