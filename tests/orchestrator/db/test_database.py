"""Migrations, and the writer that commits in groups."""

import asyncio
import sqlite3

import pytest

from beacon_ota.errors import InputError
from beacon_ota.orchestrator.db.connection import StorageError, sqlite_url
from beacon_ota.orchestrator.db.database import Database
from beacon_ota.orchestrator.db.schema_version import (
    open_offline,
)
from beacon_ota.orchestrator.db.tables import events
from tests.dashboard.web import Signed
from tests.orchestrator.world import template, upload


def in_database(tmp_path, work):
    async def main():
        (tmp_path / "beacon-ota.db").write_bytes(template())
        db = Database(sqlite_url(tmp_path))
        db.start()
        try:
            return await work(db)
        finally:
            await db.stop()

    return asyncio.run(main())


def put(conn, kind):
    return events.add(conn, 1.0, kind, "s", {})


def refuse(conn, kind):
    events.add(conn, 1.0, kind, "s", {})
    raise InputError("no", "refused")


def test_many_writes_share_few_commits_and_keep_their_order(tmp_path):
    seen = []

    async def work(db):
        futures = [
            db.write(put, f"k{n}", then=lambda row: seen.append(row["id"])) for n in range(300)
        ]
        rows = await asyncio.gather(*futures)
        assert db.writes == 300 and db.commits < 100
        return rows

    rows = in_database(tmp_path, work)
    assert [row["id"] for row in rows] == seen == sorted(seen)


def test_one_that_fails_leaves_the_others_and_nothing_of_itself(tmp_path):
    async def work(db):
        futures = [db.write(refuse if n % 10 == 3 else put, f"k{n}") for n in range(100)]
        done = await asyncio.gather(*futures, return_exceptions=True)
        assert sum(isinstance(one, InputError) for one in done) == 10
        return {row["kind"] for row in await db.read(events.list_after, 0, 1000)}

    kinds = in_database(tmp_path, work)
    assert kinds == {f"k{n}" for n in range(100) if n % 10 != 3}


def test_what_is_acknowledged_is_there_for_everybody_else(tmp_path):
    async def work(db):
        await db.write(put, "one")
        with open_offline(tmp_path) as conn:
            return [row["kind"] for row in events.list_latest(conn, 5)]

    assert in_database(tmp_path, work) == ["one"]


def test_a_waiter_that_goes_away_changes_nothing(tmp_path):
    async def work(db):
        future = db.write(put, "dropped")
        future.cancel()
        await db.write(put, "after")
        return [row["kind"] for row in await db.read(events.list_after, 0, 10)]

    assert in_database(tmp_path, work) == ["dropped", "after"]


def test_readers_cannot_write(tmp_path):
    async def work(db):
        with pytest.raises(Exception, match="readonly"):
            await db.read(put, "no")

    in_database(tmp_path, work)


def test_what_the_database_refuses_is_named(tmp_path):
    def wrong(conn):
        conn.exec_driver_sql("INSERT INTO nowhere VALUES (1)")

    async def work(db):
        with pytest.raises(StorageError) as caught:
            await db.write(wrong)
        assert caught.value.code == "storage"

    in_database(tmp_path, work)


def test_a_zone_that_this_machine_does_not_know_keeps_nobody_from_starting(local, tmp_path, caplog):
    """A database that was restored where the zone files are older."""
    firmware_id = upload(local.admin(), "1.1.0", tmp_path, channel="stable")["firmware_id"]
    for path in ("hq", "hq/a", "hq/b"):
        local.admin().create_site(path, window="12:00-23:00")
    (there,) = local.beacons(1, prefix="there", site="hq/a")
    (elsewhere,) = local.beacons(1, prefix="elsewhere", site="hq/b")
    local.admin().create_rollout(firmware_id, {"preset": "all-at-once"})
    local.stop()
    with sqlite3.connect(local.service.settings.data / "beacon-ota.db") as conn:
        conn.execute("UPDATE sites SET tz = 'Mars/Olympus' WHERE path = 'hq/a'")
    conn.close()
    local.start()
    for beacon in (there, elsewhere):
        beacon.connect(local.url)
    assert elsewhere.offered()
    assert there.poll().headers["x-reason"] == "window"  # at no hour that may be a wrong one
    shown = {one["path"]: one for one in local.admin().list_sites()}
    assert shown["hq/a"]["tz"] == "Mars/Olympus" and shown["hq/a"]["opens_at"] is None
    assert "no such time zone here" in Signed(local.url, local.token).get("/").text
    local.admin().change_site("hq/a", tz="Europe/Berlin")
    local.clock.at += 1
    assert there.offered()
    assert "Mars/Olympus" in caplog.text
