"""What becomes of an attempt by what its beacon says."""

from tests.orchestrator.world import upload

ANY_TIME = {"preset": "all-at-once", "window": "00:00-24:00"}


def test_a_bad_journal_entry_costs_no_outcome(local, tmp_path):
    admin = local.admin()
    release = upload(admin, "1.1.0", tmp_path, channel="stable")["firmware_id"]
    rollout = admin.create_rollout(release, ANY_TIME)["rollout_id"]
    (beacon,) = local.beacons(1)
    local.step()
    offer = beacon.offered()
    assert beacon.download(offer).status == 200
    entries = [[1, 0, "wifi", "handshake_timeout", ""]]
    for journal in (entries, [[1, 0, "?", "?", ""]], [[1, 2]], "x"):
        answer = beacon.report("failed", offer, stage="flash", code="erase", journal=journal)
        assert answer.status == 200, answer.body
    local.go_on(31 * 60)
    assert admin.rollout(rollout)["results"] == {"failed": 1}
