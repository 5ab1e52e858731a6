"""What was heard since the last flush: each once, and put back when it could not be written."""

from hypothesis import given
from hypothesis import strategies as st

from beacon_ota.orchestrator.core.contacts import ContactLog
from beacon_ota.orchestrator.core.fleet_records import BeaconState
from beacon_ota.orchestrator.core.replay import ReplaySlot
from tests.orchestrator.rollout.build import MONDAY, beacon

IDS = ("b1", "b2", "b3")


def fleet_of(*ids: str) -> dict[str, BeaconState]:
    nobody = ReplaySlot.__new__(ReplaySlot)
    return {one: BeaconState(beacon(one), b"k", None, (), nobody, None) for one in ids}


_HEARD = st.lists(st.tuples(st.sampled_from(IDS), st.sampled_from(["seen", "refused"])))


@given(_HEARD, _HEARD)
def test_a_flush_that_fails_loses_nobody(before, after):
    fleet = fleet_of(*IDS)
    log = ContactLog(fleet)

    def hear(events) -> None:
        for beacon_id, what in events:
            if what == "seen":
                log.mark_seen(fleet[beacon_id], MONDAY, "1.0.0", "", False, "10.0.0.7")
            else:
                log.mark_refused(fleet[beacon_id], MONDAY, "bad_report")

    hear(before)
    log.restore_rows(log.take_seen_rows(), log.take_refused_rows())
    hear(after)
    heard = [*before, *after]
    assert {row["beacon"] for row in log.take_seen_rows()} == {
        beacon_id for beacon_id, what in heard if what == "seen"
    }
    assert {row["beacon"]: row["times_refused"] for row in log.take_refused_rows()} == {
        beacon_id: heard.count((beacon_id, "refused"))
        for beacon_id, what in heard
        if what == "refused"
    }
    assert not log.take_seen_rows() and not log.take_refused_rows()


def test_who_is_removed_is_neither_flushed_nor_put_back():
    fleet = fleet_of(*IDS)
    log = ContactLog(fleet)
    for beacon_id in IDS:
        log.mark_seen(fleet[beacon_id], MONDAY, "1.0.0", "", False, "10.0.0.7")
    log.forget_beacon(fleet.pop("b1").beacon.id)
    rows = log.take_seen_rows()
    assert [row["beacon"] for row in rows] == ["b2", "b3"]
    log.forget_beacon(fleet.pop("b2").beacon.id)
    log.restore_rows(rows, [])
    assert [row["beacon"] for row in log.take_seen_rows()] == ["b3"]


def test_a_claim_that_nothing_proves_ends_with_the_next_word_of_its_own():
    fleet = fleet_of("b1")
    log = ContactLog(fleet)
    log.mark_claimed("nobody", MONDAY, "bad_mac", "10.0.0.9")
    for _ in range(3):
        log.mark_claimed("b1", MONDAY, "bad_mac", "10.0.0.9")
    claim = fleet["b1"].claim
    assert claim is not None and (claim.count, claim.address) == (3, "10.0.0.9")
    assert not log.take_seen_rows() and not log.take_refused_rows()
    log.mark_seen(fleet["b1"], MONDAY, "1.0.0", "", False, "10.0.0.7")
    assert fleet["b1"].claim is None
