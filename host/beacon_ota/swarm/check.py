"""The swarm's ledger against the orchestrator's books, entry by entry. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from beacon_ota.swarm.expected_counts import ExpectedAttempt, ExpectedCounts

GIVEN_UP = ("lost", "expired", "stopped")
MISMATCHES_SHOWN = 20  # mismatches that are told in full

Row = Mapping[str, Any]


def compare_counts(
    ledger: ExpectedCounts,
    attempts: Iterable[Row],
    beacons: Iterable[Row],
    results: Mapping[str, Mapping[str, int]],
) -> list[str]:
    """Return what does not agree, a line each; nothing when all does.

    Args:
        attempts: of the swarm's rollouts, as ``/api/rollouts/{id}/attempts`` gives them.
        beacons: the swarm's, as ``/api/beacons`` gives them.
        results: of each rollout, by its id, as ``/api/rollouts/{id}`` counts them.
    """
    rows = {row["id"]: row for row in attempts}
    return [
        *_compare_attempts(ledger, rows),
        *_compare_sums(ledger, rows, results),
        *_compare_versions(ledger, {row["beacon_id"]: row for row in beacons}),
    ]


def _compare_attempts(ledger: ExpectedCounts, rows: Mapping[str, Row]) -> Iterator[str]:
    for key, one in ledger.attempts.items():
        row = rows.get(key)
        if row is None:
            yield f"{one.beacon}: attempt {key} was offered, and is not in the books"
        elif row["beacon_id"] != one.beacon or row["firmware_id"] != one.firmware:
            yield f"{one.beacon}: attempt {key} is booked for {row['beacon_id']}"
        elif one.taken and not row["taken_at"]:
            yield f"{one.beacon}: attempt {key} was taken, and is not booked as taken"
        elif not _is_possible(one, row["result"], row["late_result"]):
            yield (
                f"{one.beacon}: attempt {key} came to {one.final_status or 'no word'}"
                f" ({one.recorded or 'not acknowledged'}), booked is {row['result']}"
                + (f", late {row['late_result']}" if row["late_result"] else "")
            )
    for key, row in rows.items():
        if key in ledger.attempts or row["beacon_id"] not in ledger.reported_versions:
            continue
        # An offer whose answer got lost on its way: nobody can have taken it.
        if row["taken_at"] or row["result"] not in (None, "expired", "stopped"):
            yield f"{row['beacon_id']}: attempt {key} is in the books, and was never offered"


def _is_possible(one: ExpectedAttempt, result: str | None, late: str | None) -> bool:
    """Can this result have come of what the beacon said?"""
    if one.recorded == "first":
        return result == one.final_status
    if one.recorded == "late":
        return result in GIVEN_UP and late == one.final_status
    if one.recorded == "repeated":  # an earlier one, whose answer got lost, was the first
        return one.final_status in (result, late)
    if one.final_status:  # nobody knows whether it was heard
        return result in (None, one.final_status, "rolled_back", *GIVEN_UP)
    # Without a word, only what the orchestrator concludes by itself; success it does not.
    return result in (None, "rolled_back", *GIVEN_UP)


def _compare_sums(
    ledger: ExpectedCounts, rows: Mapping[str, Row], results: Mapping[str, Mapping[str, int]]
) -> Iterator[str]:
    for rollout, shown in results.items():
        mine = (row["result"] or "open" for row in rows.values() if row["rollout_id"] == rollout)
        counted = Counter(mine)
        if counted != Counter(shown):
            yield f"rollout {rollout}: counts {dict(shown)}, its attempts are {dict(counted)}"
    least = sum(
        one.recorded == "first" and one.final_status == "success"
        for one in ledger.attempts.values()
    )
    most = least + sum(
        one.final_status == "success" and one.recorded in ("", "repeated")
        for one in ledger.attempts.values()
    )
    booked = sum(counts.get("success", 0) for counts in results.values())
    if not least <= booked <= most:
        known = str(least) if least == most else f"between {least} and {most}"
        yield f"successes: {booked} in the books, {known} by the swarm's"


def _compare_versions(ledger: ExpectedCounts, rows: Mapping[str, Row]) -> Iterator[str]:
    for beacon, one in ledger.reported_versions.items():
        row = rows.get(beacon)
        if row is None:
            yield f"{beacon}: is not registered any more"
        elif one.sure and (row["version"], row["image"]) != (one.version, one.image):
            yield f"{beacon}: runs {one.version}, in the books {row['version']}"
