"""The orchestrator on PostgreSQL: whole rollouts, what text may hold, and a database that fails."""

import asyncio
import secrets

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import event, text

from beacon_ota.errors import ReachError, UsageError
from beacon_ota.orchestrator.core.rollout_records import dump_state, load_state
from beacon_ota.orchestrator.db.connection import connect
from beacon_ota.orchestrator.db.database import Database
from beacon_ota.orchestrator.db.schema import metadata
from beacon_ota.orchestrator.db.schema_version import migrate_if_due, newest_revision
from beacon_ota.orchestrator.db.tables import audit, changes, events, rollouts
from beacon_ota.orchestrator.rollout import advance as moves
from tests.orchestrator.postgres import cluster
from tests.orchestrator.test_held_back import (  # noqa: F401
    test_a_quarantine_stops_what_its_beacon_has_begun,
    test_what_is_pressed_twice_opens_one_stage,
)
from tests.orchestrator.test_rollout_flow import (  # noqa: F401  the same, over another database
    release,
    test_a_late_success_is_noted_and_changes_nothing,
    test_a_restart_forgets_nothing,
    test_a_withdrawn_release_stops_everybody,
    test_an_abort_lets_those_who_reboot_come_to_their_end,
    test_moved_by_two_at_once_it_moves_once,
    test_three_attempts_then_quarantine_until_forgiven,
    test_waves_by_building_and_windows,
)
from tests.orchestrator.world import Local, Server, TestBeacon, beacons, until, upload


@pytest.fixture
def local(tmp_path, caplog):
    with Local(tmp_path / "data", database=cluster().create_database()) as local:
        until(lambda: local.service.is_leader)
        yield local
    failures = [record for record in caplog.records if record.exc_info]
    assert not failures, caplog.text


def test_the_migrations_lead_to_the_schema():
    engine = connect(cluster().create_database())
    with engine.connect() as conn:
        context = MigrationContext.configure(conn)
        assert context.get_current_revision() == newest_revision()
        assert compare_metadata(context, metadata) == []
    migrate_if_due(engine)
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "kind", "code"),
    [
        ("mysql://x/y", UsageError, "database_url"),
        ("nothing", UsageError, "database_url"),
        ("postgresql+asyncpg://nobody@/nowhere?host=/nonexistent", ReachError, "database"),
    ],
)
def test_a_database_that_is_none(url, kind, code):
    with pytest.raises(kind) as caught:
        migrate_if_due(connect(url))
    assert caught.value.code == code


def test_a_beacon_may_say_what_the_database_cannot_keep(local, tmp_path):
    (beacon,) = local.beacons(1)
    made = upload(local.admin(), "1.1.0", tmp_path, channel="stable")["firmware_id"]
    local.admin().create_rollout(made, {"preset": "all-at-once", "window": "00:00-24:00"})
    offer = beacon.offered()
    assert beacon.download(offer).status == 200
    answer = beacon.report(
        "failed",
        offer,
        stage="verify",
        code="image",
        detail="\0" + "ä" * 99,
        duration_ms=2**39,
        heap_free_min=2**32,
        journal=[[2**31 - 1, 2**39, "boot", "crash", "\0x"]],
    )
    assert answer.status == 200, answer.body
    shown = local.admin().get_beacon(beacon.id)
    assert shown["attempts"][0]["detail"] == "\ufffd" + "ä" * 99
    assert shown["attempts"][0]["duration_ms"] == 2**39
    assert shown["journal"][0]["detail"] == "\ufffdx"
    path = "x" * 200
    assert local.admin().call("POST", "/api/sites", json={"path": path})["path"] == path


@pytest.fixture
def lose(local):
    """Have the answers to the next commits be lost: they were made, and nobody is told."""
    lost = []

    def commit(conn):
        if lost:
            lost.pop()
            raw = conn.connection.driver_connection
            raw.commit()
            raw.close()

    event.listen(local.service.db._engine, "commit", commit)
    return lambda count=1: lost.extend([None] * count)


def test_what_was_committed_and_its_answer_lost_is_known_all_the_same(local, lose, tmp_path):
    """A beacon that was registered is answered, and what was halted is offered to nobody."""
    admin = local.admin()
    lose()
    key = secrets.token_bytes(32)
    with pytest.raises(ReachError):
        admin.create_beacon("lost", "esp32c3", key=key.hex())
    beacon = TestBeacon(local.url, "lost", key)
    beacon.clock = local.clock.now
    assert beacon.poll().status == 204
    made = upload(admin, "1.1.0", tmp_path, channel="stable")["firmware_id"]
    plan = {"preset": "all-at-once", "window": "00:00-24:00"}
    rollout = admin.create_rollout(made, plan)["rollout_id"]
    offer = beacon.offered()
    assert beacon.download(offer).status == 200 and beacon.offered() == offer
    lose()
    assert admin.post_rollout_action(rollout, "halt")["status"] == "halted"  # in memory, if need be
    assert beacon.offer() is None
    until(lambda: not local.service.stops.to_store())
    kinds = [one["kind"] for one in admin.get_rollout(rollout)["transitions"]]
    assert kinds.count("halted") == 1
    assert admin.get_rollout(rollout)["status"] == "halted"
    assert beacon.report("rebooting", offer).status in (409, 410)


def test_a_database_that_lost_its_last_commits_is_read_again(local, tmp_path):
    """Its replica took over and numbers changes as it knows them: a halt is heard all the same."""
    admin = local.admin()
    (beacon,) = local.beacons(1)
    made = upload(admin, "1.1.0", tmp_path, channel="stable")["firmware_id"]
    plan = {"preset": "all-at-once", "window": "00:00-24:00"}
    rollout = admin.create_rollout(made, plan)["rollout_id"]
    offer = beacon.offered()
    assert beacon.download(offer).status == 200 and beacon.offered() == offer
    engine = connect(local.service.settings.database)
    with engine.begin() as conn:
        for number in range(20):  # these are lost
            put(conn, f"thing.{number}")
    local.call(local.service.catch_up())
    with engine.begin() as conn:
        conn.execute(text("DELETE FROM changes WHERE seq > (SELECT max(seq) - 20 FROM changes)"))
        reset = "SELECT setval(pg_get_serial_sequence('changes', 'seq'), max(seq)) FROM changes"
        conn.execute(text(reset))
        row = rollouts.get(conn, rollout)
        assert row is not None
        state = load_state(row["state"])
        (halted,) = moves.halt_rollout(state, local.clock.at, "somebody")
        values = {"status": "halted", "state": dump_state(moves.apply_transition(state, halted))}
        assert rollouts.update_if_unmoved(conn, rollout, row["revision"], values)
    engine.dispose()
    assert beacon.offer() is None
    assert beacon.download(offer).status in (409, 410)


def put(conn, kind):
    return events.add(conn, 1.0, kind, "s", {})


def test_a_connection_that_is_cut_costs_one_answer_at_most():
    async def main() -> None:
        url = cluster().create_database()
        db = Database(url, worker="me")
        db.start()
        other = connect(url, readonly=True)
        try:
            await db.write(put, "before")
            with other.connect() as conn:
                conn.execution_options(isolation_level="AUTOCOMMIT").execute(
                    text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )
                )
            await db.write(put, "after")
            rows = await db.read(events.list_after, 0, 10)
            assert [row["kind"] for row in rows] == ["before", "after"]
        finally:
            other.dispose()
            await db.stop()

    asyncio.run(main())


def test_a_writer_that_dies_in_a_transaction_holds_up_nobody():
    def cut(conn):
        put(conn, "lost")
        conn.connection.driver_connection.close()

    async def main() -> None:
        db = Database(cluster().create_database(), worker="me")
        db.start()
        try:
            done = await asyncio.gather(
                db.write(put, "beside"), db.write(cut), return_exceptions=True
            )
            assert isinstance(done[1], ReachError)
            await db.write(put, "after")
            kinds = [row["kind"] for row in await db.read(events.list_after, 0, 10)]
            assert kinds[-1] == "after" and "lost" not in kinds
        finally:
            await db.stop()

    asyncio.run(main())


def test_changes_come_in_the_order_of_the_commits_and_are_forgotten_with_a_note(monkeypatch):
    monkeypatch.setattr(changes, "KEPT", 10)

    async def main() -> None:
        url = cluster().create_database()
        workers = [Database(url, worker=name) for name in ("one", "two", "three")]
        for db in workers:
            db.start()
        try:
            writes = [db.write(put, f"k{n}") for n in range(40) for db in workers]
            await asyncio.gather(*writes)
            read = workers[0].read
            news = await read(changes.read_batch, 0, "one", True)
            assert len(news.rows["events"]) == 120 and news.kinds == {"events"}
            assert list(news.rows["events"]) == sorted(news.rows["events"], key=int)
            assert not (await read(changes.read_batch, 0, "one", False)).rows
            await workers[1].write(changes.prune_changes)
            assert (await read(changes.read_batch, 5, "one", True)).lost
            left = await read(changes.read_batch, news.seq - 10, "one", True)
            assert not left.lost and left.seq == news.seq
        finally:
            for db in workers:
                await db.stop()

    asyncio.run(main())


def test_the_database_goes_away_and_comes_back(tmp_path):
    """Polls go on out of memory; what needs a commit is refused by name, and works again after."""
    with Server(tmp_path / "data", f"--database={cluster().create_database()}") as server:
        one, two = beacons(server, 2)
        assert one.poll().status == 204
        cluster().restart()
        assert two.poll().status == 204

        def answered() -> bool:
            answer = one.report("idle")
            assert answer.status in (200, 503), answer.body
            return answer.status == 200

        until(answered, deadline_s=180)
        until(lambda: server.admin().call("GET", "/health"), deadline_s=180)
        firmware = upload(server.admin(), "1.1.0", tmp_path, channel="stable")["firmware_id"]
        plan = {"preset": "all-at-once", "window": "00:00-24:00"}
        rollout = server.admin().create_rollout(firmware, plan)["rollout_id"]
        for beacon in (one, two):
            beacon.update(beacon.offered())
        until(
            lambda: server.admin().get_rollout(rollout)["status"] == "completed",
            deadline_s=180,
            what="a leader to be there again",
        )
        assert "Traceback" not in server.log()


def test_the_audit_log_holds_whatever_was_typed(local):
    (beacon,) = local.beacons(1)
    local.admin().post_beacon_action(beacon.id, "quarantine", "a\0b")
    with local.service.db._engine.begin() as conn:  # what `audit verify` walks
        assert audit.verify_chain(conn)["entries"] > 1
