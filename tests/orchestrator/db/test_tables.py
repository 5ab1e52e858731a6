"""The store's functions over a real database."""

# pyright: reportOptionalSubscript=false

import pytest
from sqlalchemy import event, insert, update

from beacon_ota.orchestrator.db.connection import connect, sqlite_url
from beacon_ota.orchestrator.db.schema import beacons as beacon_table
from beacon_ota.orchestrator.db.schema import firmwares, rollouts
from beacon_ota.orchestrator.db.tables import (
    attempts,
    beacons,
    events,
    outcomes,
    prepared,
    statistics,
    tokens,
)
from beacon_ota.orchestrator.db.tables import rollouts as rollout_store
from beacon_ota.orchestrator.limits import LIMITS
from tests.orchestrator.postgres import cluster
from tests.orchestrator.world import template

REPORT = {"attempt_id": "a", "update_status": "success"}
FAILURE = {**REPORT, "update_status": "failed", "stage": "verify", "code": "image", "detail": "x"}


@pytest.fixture(params=["sqlite", "postgresql"])
def conn(request, tmp_path):
    if request.param == "sqlite":
        (tmp_path / "beacon-ota.db").write_bytes(template())
        engine = connect(sqlite_url(tmp_path))
    else:
        engine = connect(cluster().create_database())
    with engine.connect() as conn, conn.begin():
        release = {
            "id": "f",
            "device_type": "esp32c3",
            "version": "1.1.0",
            "checksum": "c",
            "size": 1,
            "blob": "b",
            "state": "stable",
            "uploaded_at": 0.0,
            "uploaded_by": "x",
        }
        conn.execute(insert(firmwares), release)
        order = {"id": "r", "firmware_id": "f", "name": "", "status": "active", "plan": "{}"}
        conn.execute(insert(rollouts), {**order, "state": "{}", "created_at": 0, "created_by": "x"})
        attempts.offer(conn, attempt("a"))
        yield conn
    engine.dispose()


OFFERED = attempts.Progress(1.0, None, None)


def attempt(attempt_id: str, **values):
    return {
        **dict.fromkeys(attempts.COLUMNS),
        "id": attempt_id,
        "beacon_id": "b" + attempt_id,
        "firmware_id": "f",
        "rollout_id": "r",
        "wave": 0,
        "stage": 0,
        "n": 1,
        "offered_at": 1.0,
        **values,
    }


def beacon(beacon_id: str):
    return {"id": beacon_id, "key": bytes(32), "device_type": "esp32c3", "created_at": 0.0}


def test_the_first_word_of_an_attempt_takes_it(conn):
    assert attempts.start(conn, "a", 5.0)["taken_at"] == 5.0
    assert attempts.start(conn, "a", 6.0)["taken_at"] == 5.0
    row = attempts.mark_rebooting(conn, "a", 7.0)
    assert (row["taken_at"], row["rebooting_at"]) == (5.0, 7.0)
    assert attempts.mark_rebooting(conn, "a", 8.0)["rebooting_at"] == 7.0
    assert attempts.start(conn, "nowhere", 1.0) is None


def test_a_result_is_set_once(conn):
    how, row = attempts.record_result(conn, 9.0, {**REPORT, "bytes": 77})
    assert how == "first" and row["result"] == "success" and row["bytes"] == 77
    assert row["taken_at"] == 9.0  # a final report takes what nothing took before
    for again in (REPORT, FAILURE):
        how, row = attempts.record_result(conn, 10.0, again)
        assert how == "repeated" and row["result"] == "success" and row["ended_at"] == 9.0
    assert attempts.conclude(conn, "a", 11.0, "lost", progress=OFFERED) == (False, row)
    assert attempts.start(conn, "a", 12.0)["ended_at"] == 9.0
    assert attempts.record_result(conn, 1.0, {**REPORT, "attempt_id": "nowhere"}) == (
        "repeated",
        None,
    )


@pytest.mark.parametrize("given_up", attempts.GIVEN_UP)
def test_what_comes_late_is_kept_beside(conn, given_up):
    settled, row = attempts.conclude(conn, "a", 5.0, given_up, progress=OFFERED, detail="d")
    assert settled and row["result"] == given_up
    how, row = attempts.record_result(conn, 9.0, {**FAILURE, "trials": 3})
    assert how == "late" and row["trials"] == 3
    assert (row["result"], row["late_result"], row["late_at"]) == (given_up, "failed", 9.0)
    how, row = attempts.record_result(conn, 10.0, REPORT)
    assert how == "repeated" and row["late_result"] == "failed"


BACK = {**REPORT, "update_status": "rolled_back", "stage": "boot", "code": "crash", "detail": "d"}


def test_a_beacon_that_goes_back_undoes_its_success(conn):
    attempts.record_result(conn, 5.0, {**REPORT, "bytes": 77})
    how, row = attempts.record_result(conn, 9.0, BACK)
    assert how == "undone" and row["result"] == "success" and row["ended_at"] == 5.0
    assert (row["late_result"], row["late_at"], row["blamed_at"]) == ("rolled_back", 9.0, 9.0)
    assert (row["failed_in"], row["code"], row["detail"]) == ("boot", "crash", "d")
    assert row["bytes"] == 77
    for again in (BACK, REPORT, FAILURE):
        assert attempts.record_result(conn, 10.0, again) == ("repeated", row)
    assert attempts.count_results(conn, "r") == {"undone": 1}
    which = outcomes.OutcomeFilter()
    assert outcomes.list_beacons(conn, which) == outcomes.list_beacons(
        conn, which._replace(result="undone")
    )
    assert outcomes.list_beacons(conn, which._replace(since=8.0)) == {"ba"}
    (reason,) = outcomes.count_by_reason(conn, which)
    assert (reason["result"], reason["failed_in"], reason["code"]) == ("undone", "boot", "crash")
    found = statistics.read_statistics(conn)
    assert found.failures == {("f", "undone", "boot", "crash"): 1}
    assert found.results == {("f", "success"): 1}  # a counter never goes back


def test_what_updates_moved_is_summed_by_release(conn):
    conn.execute(update(firmwares).values(size=1000))
    assert statistics.read_statistics(conn).transfers == {}
    said = {"bytes_fetched": 300, "sectors_kept": 7, "sectors_written": 2}
    attempts.record_result(conn, 5.0, {**REPORT, **said})
    again = {"bytes_fetched": 1700, "sectors_written": 9}  # an adaptation that went wrong
    for number, ended in enumerate(({**REPORT, **again}, {**FAILURE, "bytes_fetched": 10}, REPORT)):
        attempts.offer(conn, attempt(f"n{number}", beacon_id=f"b{number}"))
        attempts.record_result(conn, 6.0, {**ended, "attempt_id": f"n{number}"})
    found = statistics.read_statistics(conn).transfers
    assert found == {"f": statistics.Transfers(fetched=2010, saved=700, kept=7, written=11)}


def test_a_success_that_came_late_is_undone_too(conn):
    attempts.conclude(conn, "a", 5.0, "lost", progress=OFFERED)
    attempts.record_result(conn, 9.0, REPORT)
    how, row = attempts.record_result(conn, 12.0, BACK)
    assert how == "undone" and row["result"] == "lost" and row["failed_in"] is None
    assert (row["late_result"], row["late_at"], row["blamed_at"]) == ("rolled_back", 12.0, 12.0)


@pytest.mark.parametrize(
    ("report", "blamed"),
    [
        (BACK, True),
        ({**BACK, "code": "watchdog"}, True),
        ({**BACK, "code": "self_test"}, True),
        ({**BACK, "code": "power"}, False),
        ({**BACK, "code": "not_booted"}, False),
        ({**BACK, "stage": None, "code": None}, False),
        ({**FAILURE, "code": "known_bad"}, True),
        (FAILURE, False),
        ({**FAILURE, "stage": "boot", "code": "crash"}, False),  # the one that runs has crashed
        (REPORT, False),
    ],
)
def test_what_calls_a_release_bad(conn, report, blamed):
    assert (attempts.record_result(conn, 9.0, report)[1]["blamed_at"] == 9.0) == blamed
    assert attempts.record_result(conn, 10.0, report)[1]["blamed_at"] in (9.0, None)


def test_a_verdict_that_comes_late_counts(conn):
    attempts.conclude(conn, "a", 5.0, "lost", progress=OFFERED)
    how, row = attempts.record_result(conn, 9.0, BACK)
    assert how == "late" and row["blamed_at"] == 9.0 and row["failed_in"] is None


def test_the_end_of_another_attempt_undoes_earlier_successes(conn):
    mine = {"beacon_id": "ba"}
    attempts.offer(conn, attempt("b", n=2, offered_at=20.0, **mine))
    attempts.offer(conn, attempt("c", n=3, offered_at=30.0, **mine))
    attempts.offer(conn, attempt("d", offered_at=1.0))
    for key in "acd":
        attempts.record_result(conn, 40.0, {**REPORT, "attempt_id": key})
    _, row = attempts.record_result(conn, 50.0, {**BACK, "attempt_id": "b"})
    assert row is not None
    for harmless in ({**FAILURE, "attempt_id": "b"}, {**REPORT, "attempt_id": "b"}):
        assert attempts.undo_earlier(conn, 50.0, harmless, row) == []
    (undone,) = attempts.undo_earlier(conn, 50.0, {**BACK, "attempt_id": "b"}, row)
    assert (undone["id"], undone["late_result"], undone["code"]) == ("a", "rolled_back", "crash")
    assert undone["blamed_at"] == 50.0
    assert attempts.undo_earlier(conn, 51.0, {**BACK, "attempt_id": "b"}, row) == []


@pytest.mark.parametrize("go_on", [attempts.start, attempts.mark_rebooting])
def test_who_has_gone_on_is_not_given_up(conn, go_on):
    assert (row := go_on(conn, "a", 4.0)) is not None
    assert attempts.conclude(conn, "a", 5.0, "stopped", progress=OFFERED) == (False, row)
    upon = attempts.Progress(1.0, row["taken_at"], row["rebooting_at"])
    settled, row = attempts.conclude(conn, "a", 5.0, "lost", progress=upon)
    assert settled and row["result"] == "lost"


def test_an_offer_is_made_upon_what_is_committed(conn):
    conn.execute(insert(beacon_table), {**beacon("bn"), "channel": "stable"})
    basis = rollout_store.read_basis(conn, "r")
    assert basis is not None and basis == (0, "active", "stable")
    row = attempt("n")
    for other in (basis._replace(revision=1), basis._replace(status="paused")):
        assert attempts.offer_if_unchanged(conn, other, ("stable", "esp32c3"), row, False) is None
    assert attempts.offer_if_unchanged(conn, basis, ("beta", "esp32c3"), row, False) is None
    for table, name, value, was in (
        (rollouts, "status", "halted", "active"),
        (rollouts, "revision", 1, 0),
        (firmwares, "state", "deprecated", "stable"),
        (firmwares, "damaged_at", 1.0, None),
        (beacon_table, "quarantined_at", 1.0, None),
        (beacon_table, "channel", "beta", "stable"),
    ):
        conn.execute(update(table).values({name: value}))
        assert attempts.offer_if_unchanged(conn, basis, ("stable", "esp32c3"), row, False) is None
        conn.execute(update(table).values({name: was}))
    assert attempts.offer_if_unchanged(conn, basis, ("stable", "esp32c3"), row, False) == row
    assert (
        attempts.offer_if_unchanged(conn, basis, ("stable", "esp32c3"), attempt("x"), False) is None
    )  # removed


def test_statistics(conn):
    for number, (taken, ended) in enumerate([(0, 4), (0, 14), (0, 4000)]):
        attempts.offer(conn, attempt(f"s{number}", taken_at=taken))
        attempts.record_result(conn, ended, {**REPORT, "attempt_id": f"s{number}"})
    attempts.record_result(conn, 2.0, FAILURE)
    found = statistics.read_statistics(conn)
    assert found.results == {("f", "success"): 3, ("f", "failed"): 1}
    assert found.failures == {("f", "failed", "verify", "image"): 1} and found.late == {}
    buckets, total = found.durations["f"]
    assert total == 4018 and dict(buckets)["5.0"] == 1 and dict(buckets)["15.0"] == 2
    assert buckets[-1] == ("+Inf", 3.0)
    assert attempts.count_results(conn, "r") == {"success": 3, "failed": 1}


def test_histories_are_bounded_per_beacon(conn):
    for name in ("one", "two"):
        beacons.add(conn, beacon(name))
    for number in range(LIMITS.report_rows + 20):
        beacons.add_report(conn, "one", None, float(number), "idle", "{}")
    beacons.add_report(conn, "two", None, 0.0, "idle", "{}")
    prepared.flush_deferred(conn)
    for number in range(LIMITS.journal_rows + 20):
        beacons.add_journal_entries(
            conn, "one", [[number + 1, 0, "boot", "crash", ""]], float(number)
        )
    beacons.add_journal_entries(conn, "two", [[1, 0, "boot", "crash", ""]] * 3, 0.0)
    beacons.prune_history(conn)
    kept = beacons.list_reports(conn, "one", 1000)
    assert len(kept) == LIMITS.report_rows and kept[0]["at"] == LIMITS.report_rows + 19
    journal = beacons.list_journal(conn, "one", 1000)
    assert len(journal) == LIMITS.journal_rows and journal[0]["seq"] == LIMITS.journal_rows + 20
    assert (
        len(beacons.list_reports(conn, "two", 9)) == len(beacons.list_journal(conn, "two", 9)) == 1
    )
    beacons.prune_history(conn)
    assert len(beacons.list_reports(conn, "one", 1000)) == LIMITS.report_rows


def test_events_are_bounded_and_numbered_once(conn, monkeypatch):
    monkeypatch.setattr(events, "LIMITS", type("L", (), {"event_rows": 10}))
    first = [events.add(conn, 1.0, "k", "s", {"n": n})["id"] for n in range(30)]
    events.prune_events(conn)
    assert [one["id"] for one in events.list_after(conn, 0, 100)] == first[-10:]
    assert [one["data"]["n"] for one in events.list_latest(conn, 3)] == [27, 28, 29]
    assert events.add(conn, 1.0, "k", "s", {})["id"] == first[-1] + 1


def test_seen_keeps_the_first_time(conn):
    beacons.add(conn, beacon("one"))
    for at in (5.0, 9.0):
        said = {"running": "1.0.0", "running_image": "i", "running_state": "valid"}
        said |= {"says_type": None, "times_refused": 0}
        beacons.record_seen(conn, [{"beacon": "one", "at": at, "from_address": "a", **said}])
    row = beacons.get(conn, "one")
    assert (row["first_seen"], row["last_seen"], row["version"]) == (5.0, 9.0, "1.0.0")


def test_tokens_are_found_by_nothing_but_themselves(conn):
    row, token = tokens.create(conn, "ann", "viewer", 10.0, 20.0)
    assert tokens.find(conn, token, 19.9) == (row["id"], "ann", "viewer")
    assert tokens.find(conn, token, 20.0) is None
    assert tokens.find(conn, token[:-1], 10.0) is None
    assert all(token not in str(one) and "digest" not in one for one in tokens.list_all(conn))
    tokens.revoke(conn, row["id"], 15.0)
    assert tokens.find(conn, token, 16.0) is None
    assert tokens.revoke(conn, "nowhere", 1.0) is None


def test_pruning_takes_no_statement_for_each_row(conn):
    """One beacon that says as much as it can held up every halt for more than a minute."""
    bound = LIMITS.journal_rows
    for number in range(bound // 8 + 50):
        entries = [[number * 8 + n + 1, 0, "boot", "crash", "again"] for n in range(8)]
        beacons.add_journal_entries(conn, "b1", entries, float(number))
    statements = []
    event.listen(
        conn, "before_cursor_execute", lambda _c, _cursor, said, *_more: statements.append(said)
    )
    assert beacons.prune_history(conn, 300) == 300
    assert beacons.prune_history(conn, 300) == 100
    assert beacons.prune_history(conn, 300) == 0
    assert len(statements) <= 6
    kept = beacons.list_journal(conn, "b1", 10_000)
    assert len(kept) == bound and kept[-1]["stored_at"] == 50.0
