"""What the primary gives is in force here: its stops at once, its releases with their images."""

import threading
from contextlib import ExitStack

import pytest

from beacon_ota.orchestrator.mirror import sync as mirrors
from beacon_ota.orchestrator.mirror.images import Images
from tests.orchestrator.elsewhere import Elsewhere
from tests.orchestrator.mirror.test_sync import Scene
from tests.orchestrator.mirror.test_watch import (
    DEADLINE_S,
    STATUSES,
    confirmed,
    told,
    waited_for,
)
from tests.orchestrator.world import until


@pytest.fixture
def scene(tmp_path, monkeypatch):
    monkeypatch.setattr(mirrors, "SYNC_S", 0.1)
    with ExitStack() as stack:
        yield Scene(tmp_path, stack)


def test_a_halt_does_not_wait_for_an_image(scene, monkeypatch):
    (beacon,) = scene.beacons(1)
    rollout = scene.release()
    scene.here(rollout)
    goes_on = threading.Event()
    real = Images._download

    def slow(self, row, part):
        assert goes_on.wait(DEADLINE_S)
        real(self, row, part)

    monkeypatch.setattr(Images, "_download", slow)
    later = scene.release("1.2.0")
    until(lambda: scene.mirror.service.mirror.images._wanted, deadline_s=DEADLINE_S)
    scene.admin.post_rollout_action(rollout, "halt", "enough")
    scene.here(rollout, "halted")
    confirmed(scene, rollout)
    assert beacon.offer() is None and later not in scene.mirror.service.fleet.rollouts
    assert scene.mirror.service.mirror.error is None
    goes_on.set()
    scene.here(later)
    assert beacon.offered()["version"] == "1.2.0"


@pytest.mark.parametrize("verb", ["halt", "pause", "abort"])
def test_a_mirror_that_cannot_write_holds_what_its_primary_stopped(scene, verb):
    (beacon,) = scene.beacons(1)
    rollout = scene.release()
    scene.here(rollout)
    scene.known(1)
    scene.even()
    status = STATUSES[verb]
    with Elsewhere(scene.mirror) as elsewhere:
        elsewhere.hold()
        scene.admin.post_rollout_action(rollout, verb, "enough")
        scene.here(rollout, status)
        assert beacon.offer() is None
        assert waited_for(scene, rollout) == ["lan-a"]  # a restart might lose it
        assert elsewhere.rollout(rollout)["status"] == "active"
        if verb != "abort":
            scene.admin.post_rollout_action(rollout, "resume", "on")
            scene.here(rollout)
            scene.admin.post_rollout_action(rollout, verb, "enough")
            scene.here(rollout, status)
        elsewhere.let_go()
    confirmed(scene, rollout)
    with Elsewhere(scene.mirror) as elsewhere:
        assert elsewhere.rollout(rollout)["status"] == status
    assert not scene.mirror.service.stops.to_store()


def test_what_a_mirror_holds_for_its_primary_holds_after_a_restart(scene):
    (beacon,) = scene.beacons(1)
    rollout = scene.release()
    scene.here(rollout)
    scene.known(1)
    scene.even()
    with Elsewhere(scene.mirror) as elsewhere:
        elsewhere.hold()
        scene.admin.post_rollout_action(rollout, "halt", "enough")
        scene.here(rollout, "halted")
        board = scene.mirror.service.stops
        until(lambda: board.survives_restart, deadline_s=DEADLINE_S, what="the note of it")
        scene.uplink.cut()
        scene.mirror.stop()
        elsewhere.let_go()
    with Elsewhere(scene.mirror) as elsewhere:
        before = elsewhere.rollout(rollout)
    scene.mirror.start()
    scene.to_mirror(beacon)
    scene.here(rollout, "halted")
    assert before["status"] == "active" and beacon.offer() is None
    assert not told(scene, "mirror.halted")  # it was not the mirror's to say
    scene.uplink.restore()
    confirmed(scene, rollout)
    assert not told(scene, "mirror.halted") and not scene.mirror.service.stops.to_store()
