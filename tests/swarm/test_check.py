"""The comparison of the books: what agrees, and every kind of lie."""

from collections import Counter

import pytest

from beacon_ota.swarm.check import compare_counts
from beacon_ota.swarm.expected_counts import ExpectedAttempt, ExpectedCounts, ReportedVersion

A, B = "a" * 24, "b" * 24
FIRMWARE = "f" * 24


def books(*rows: dict) -> dict:
    """Return the orchestrator's side: attempts, beacons, counts."""
    attempts = [
        {
            "id": A,
            "beacon_id": "x",
            "firmware_id": FIRMWARE,
            "rollout_id": "r",
            "taken_at": "now",
            "result": None,
            "late_result": None,
            **row,
        }
        for row in rows
    ]
    return {
        "attempts": attempts,
        "beacons": [{"beacon_id": "x", "version": "1.0.0", "image": "i"}],
        "results": {"r": Counter(row["result"] or "open" for row in attempts)},
    }


def ledger(**fields) -> ExpectedCounts:
    """Return the swarm's side: one beacon, one attempt."""
    found = ExpectedCounts(reported_versions={"x": ReportedVersion("1.0.0", "i", True)})
    found.attempts[A] = ExpectedAttempt("x", FIRMWARE, **fields)
    return found


@pytest.mark.parametrize(
    ("lived", "booked"),
    [
        ({}, {"taken_at": None}),
        ({}, {"taken_at": None, "result": "expired"}),
        ({"taken": True}, {}),
        ({"taken": True}, {"result": "lost"}),
        ({"taken": True, "said": "success", "recorded": "first"}, {"result": "success"}),
        (
            {"taken": True, "said": "failed", "recorded": "late"},
            {"result": "lost", "late_result": "failed"},
        ),
        ({"taken": True, "said": "success", "recorded": "repeated"}, {"result": "success"}),
        ({"taken": True, "said": "success"}, {}),
        ({"taken": True, "said": "success"}, {"result": "success"}),
        ({"taken": True}, {"result": "rolled_back"}),
    ],
)
def test_what_agrees(lived, booked):
    assert compare_counts(ledger(**lived), **books(booked)) == []


@pytest.mark.parametrize(
    ("lived", "booked", "word"),
    [
        ({"taken": True}, {"taken_at": None}, "not booked as taken"),
        ({"taken": True}, {"result": "success"}, "no word"),
        ({"taken": True, "said": "success", "recorded": "first"}, {}, "booked is None"),
        ({"said": "success", "recorded": "first"}, {"result": "failed"}, "booked is failed"),
        ({"said": "failed", "recorded": "late"}, {"result": "failed"}, "late"),
        ({}, {"beacon_id": "y"}, "booked for y"),
        ({}, {"id": B, "result": "success"}, "never offered"),
        ({}, {"id": B}, "not in the books"),
    ],
)
def test_what_does_not(lived, booked, word):
    found = compare_counts(ledger(**lived), **books(booked))
    assert any(word in line for line in found), found


def test_a_result_counted_twice():
    own = ledger(taken=True, said="success", recorded="first")
    theirs = books({"result": "success"})
    theirs["results"] = {"r": {"success": 2}}
    assert (
        len(compare_counts(own, **theirs)) == 2
    )  # the sum of the rows, and the sum of the successes


def test_an_offer_that_nobody_heard_of_is_no_mismatch():
    own = ledger()
    assert compare_counts(own, **books({"taken_at": None}, {"id": B, "taken_at": None})) == []


def test_a_beacon_in_another_version_than_it_said():
    own = ledger(taken=True)
    own.reported_versions["x"] = ReportedVersion("2.0.0", "i", True)
    assert "runs 2.0.0" in compare_counts(own, **books({}))[0]
    own.reported_versions["x"].sure = False
    assert compare_counts(own, **books({})) == []
