"""Reports: what a beacon may go on with is decided upon what is committed."""

import pytest

from tests.orchestrator.test_poll import CHANGES, EVERYBODY
from tests.orchestrator.world import upload

STOPS = {name: CHANGES[name] for name in ("halted", "withdrawn", "damaged")}


@pytest.fixture
def offered(local, tmp_path):
    """A beacon, and the offer that it has got."""
    (beacon,) = local.beacons(1)
    release = upload(local.admin(), "2.0.0", tmp_path, channel="stable")["firmware_id"]
    local.admin().create_rollout(release, EVERYBODY)
    local.step()
    return beacon, beacon.offered()


@pytest.mark.parametrize("change", STOPS.values(), ids=STOPS)
def test_rebooting_is_not_acknowledged_after_a_halt_elsewhere(local, elsewhere, offered, change):
    beacon, offer = offered
    assert beacon.download(offer).status == 200
    elsewhere.execute(change)
    for word in ("verifying", "rebooting"):
        answer = beacon.report(word, offer)
        assert (answer.status, answer.json["code"]) == (410, "rollout_halted")
    row = elsewhere.attempt(offer["attempt_id"])
    assert row["rebooting_at"] is None and row["result"] is None
    assert not elsewhere.execute("SELECT id FROM reports WHERE status = 'rebooting'")


def test_nothing_is_taken_after_a_halt_elsewhere(elsewhere, offered):
    beacon, offer = offered
    elsewhere.execute(CHANGES["halted"])
    assert beacon.download(offer).status == 409
    assert beacon.report("downloading", offer).status == 410
    assert elsewhere.attempt(offer["attempt_id"])["taken_at"] is None


def test_who_is_rebooting_already_is_not_called_back(elsewhere, offered):
    beacon, offer = offered
    assert beacon.download(offer).status == 200
    assert beacon.report("rebooting", offer).status == 200
    elsewhere.execute(CHANGES["halted"])
    assert beacon.report("rebooting", offer).status == 200  # its answer was lost


def test_an_attempt_that_ended_elsewhere_is_over(elsewhere, offered):
    beacon, offer = offered
    assert beacon.download(offer).status == 200
    elsewhere.attempt(offer["attempt_id"], result="stopped", ended_at=1.0)
    answer = beacon.report("rebooting", offer)
    assert (answer.status, answer.json["code"]) == (409, "attempt_over")
