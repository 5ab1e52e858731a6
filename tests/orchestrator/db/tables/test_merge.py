"""Two versions of an attempt become one: in any order, and as often as wanted."""

from hypothesis import given
from hypothesis import strategies as st

from beacon_ota.orchestrator.db.schema import attempts
from beacon_ota.orchestrator.db.tables.attempts import MEASURED
from beacon_ota.orchestrator.db.tables.merge import MERGED, merge_attempts, says_all_of

BLANK = {
    **dict.fromkeys(attempts.c.keys()),
    "id": "a" * 24,
    "beacon_id": "b1",
    "firmware_id": "f" * 24,
    "rollout_id": "e" * 24,
    "wave": 0,
    "stage": 0,
    "n": 1,
    "offered_at": 10.0,
}
TIME = st.integers(20, 40).map(float)


@st.composite
def rows(draw) -> dict:
    """Return an attempt as an orchestrator may have it."""
    row = {**BLANK, "offered_at": draw(st.sampled_from([10.0, 11.0]))}
    if draw(st.booleans()):
        row["taken_at"] = draw(st.integers(12, 15).map(float))
        if draw(st.booleans()):
            row["rebooting_at"] = draw(st.integers(16, 19).map(float))
    words = ["success", "failed", "rolled_back", "stopped", None]
    words.append("expired" if row["taken_at"] is None else "lost")
    row["result"] = word = draw(st.sampled_from(words))
    if word is None:
        return row
    row["ended_at"] = draw(TIME)
    late = {"success": ["rolled_back"], "failed": [], "rolled_back": []}
    row["late_result"] = draw(
        st.sampled_from([None, *late.get(word, ["success", "failed", "rolled_back"])])
    )
    if row["late_result"] is not None:
        row["late_at"] = row["ended_at"] + draw(st.integers(1, 9))
    if "rolled_back" in (word, row["late_result"]):
        row["failed_in"], row["code"] = "boot", "crash"
        row["blamed_at"] = draw(st.none() | TIME)
    for name in MEASURED[:2]:
        row[name] = draw(st.none() | st.integers(0, 3))
    return row


def said(row: dict) -> dict:
    return {name: row[name] for name in MERGED}


@given(rows(), rows())
def test_both_sides_come_to_the_same(one, other):
    assert said(merge_attempts(one, other)) == said(merge_attempts(other, one))


@given(rows(), rows())
def test_what_is_told_again_changes_nothing(one, other):
    merged = merge_attempts(one, other)
    assert merge_attempts(merged, other) == merged
    assert said(merge_attempts(other, merged)) == said(merged)
    assert says_all_of(merged, one) and says_all_of(merged, other)


@given(rows())
def test_a_row_is_what_it_is(row):
    assert merge_attempts(row, row) == row


@given(rows(), rows())
def test_no_success_is_lost(one, other):
    """What somebody acknowledged as a success is one, or is known to be undone or contradicted."""
    merged = merge_attempts(one, other)
    if "success" in (one["result"], other["result"]):
        words = {one["result"], other["result"]} - {"success"}
        contradicted = bool(words & {"failed", "rolled_back"})
        assert merged["result"] == "success" or contradicted
        assert "success" in (merged["result"], merged["late_result"]) or contradicted


@given(rows(), rows())
def test_nobody_is_given_up_of_whom_something_was_heard(one, other):
    merged = merge_attempts(one, other)
    heard = {one["result"], other["result"]} & {"success", "failed", "rolled_back", "stopped"}
    if heard:
        assert merged["result"] in heard


def test_whose_it_is_and_its_number_stay():
    mine = {**BLANK, "mirror": "m" * 24, "n": 3}
    theirs = {**BLANK, "mirror": None, "n": 1, "result": "success", "ended_at": 20.0}
    merged = merge_attempts(mine, theirs)
    assert (merged["mirror"], merged["n"], merged["result"]) == ("m" * 24, 3, "success")


def test_a_success_that_was_undone_elsewhere_says_why():
    one = {**BLANK, "taken_at": 12.0, "result": "success", "ended_at": 20.0}
    other = {
        **one,
        "late_result": "rolled_back",
        "late_at": 30.0,
        "failed_in": "boot",
        "code": "crash",
    }
    merged = merge_attempts(one, other)
    assert (merged["result"], merged["late_result"], merged["code"]) == (
        "success",
        "rolled_back",
        "crash",
    )


def test_an_offer_that_had_expired_and_was_made_again_is_open():
    one = {**BLANK, "result": "expired", "ended_at": 20.0}
    other = {**BLANK, "offered_at": 30.0}
    assert merge_attempts(one, other)["result"] is None
    taken = {**BLANK, "taken_at": 12.0}
    assert merge_attempts(one, taken)["result"] is None
