"""Migrations, and the writer that commits in groups."""

import asyncio
import sqlite3

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import (
    Boolean,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    insert,
    inspect,
    select,
)

from beacon_ota.errors import InputError, ReachError
from beacon_ota.orchestrator.db.database import (
    MIGRATIONS,
    Database,
    StorageError,
    connect,
    migrate_if_due,
    newest_revision,
    open_offline,
    sqlite_url,
)
from beacon_ota.orchestrator.db.schema import metadata
from beacon_ota.orchestrator.db.tables import events
from tests.dashboard.web import Signed
from tests.orchestrator.postgres import cluster
from tests.orchestrator.world import template, upload


@pytest.fixture
def engine(tmp_path):
    engine = connect(sqlite_url(tmp_path))
    yield engine
    engine.dispose()


def test_the_migrations_lead_to_the_schema(engine):
    migrate_if_due(engine)
    with engine.connect() as conn:
        context = MigrationContext.configure(conn)
        assert context.get_current_revision() == newest_revision()
        assert compare_metadata(context, metadata) == []
    migrate_if_due(engine)  # and stay there


def test_the_migrations_can_be_taken_back(engine):
    migrate_if_due(engine)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as conn:
        config.attributes["connection"] = conn
        command.downgrade(config, "base")
        assert set(inspect(conn).get_table_names()) <= {"alembic_version", "sqlite_sequence"}
        command.upgrade(config, "head")
        assert set(metadata.tables) <= set(inspect(conn).get_table_names())


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request, tmp_path):
    """An engine of a database without a schema."""
    url = sqlite_url(tmp_path) if request.param == "sqlite" else cluster().create_database()
    engine = connect(url)
    if request.param == "postgresql":  # it comes with the newest schema
        with engine.begin() as conn:
            conn.exec_driver_sql("DROP SCHEMA public CASCADE")
            conn.exec_driver_sql("CREATE SCHEMA public")
    yield engine
    engine.dispose()


def upgrade_to(engine, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as conn:
        config.attributes["connection"] = conn
        command.upgrade(config, revision)


def fill(conn) -> dict[str, list[dict]]:
    """Put a row into every table, each of its columns set; return the rows."""
    there = MetaData()
    there.reflect(conn)
    made: dict[str, list[dict]] = {}
    for table in there.sorted_tables:
        if table.name == "alembic_version":
            continue
        row = {}
        for column in table.columns:
            if column.foreign_keys:
                (key,) = column.foreign_keys
                row[column.name] = made[key.column.table.name][0][key.column.name]
            elif (table.name, column.name) == ("changes", "seq"):
                continue  # triggers have made changes, too
            elif isinstance(column.type, LargeBinary):
                row[column.name] = b"\x07" * 32
            elif isinstance(column.type, Boolean):
                row[column.name] = True
            elif isinstance(column.type, Float | Integer | Numeric):
                row[column.name] = 7
            else:
                row[column.name] = _WORDS.get((table.name, column.name), "7")
        conn.execute(insert(table), row)
        made[table.name] = read(conn, table)
    return made


_WORDS = {("attempts", "result"): "rolled_back", ("attempts", "failed_in"): "boot"}


def read(conn, table) -> list[dict]:
    query = select(table).order_by(*table.primary_key)
    return [dict(row._mapping) for row in conn.execute(query)]


@pytest.mark.parametrize("revision", ["0003", "0004"])
def test_a_database_of_a_release_before_is_brought_up_with_all_that_is_in_it(empty, revision):
    upgrade_to(empty, revision)
    with empty.begin() as conn:
        before = fill(conn)
        assert set(before) >= set(metadata.tables) - ADDED
    migrate_if_due(empty)
    with empty.begin() as conn:
        context = MigrationContext.configure(conn)
        assert compare_metadata(context, metadata) == []
        for name, rows in before.items():
            found = read(conn, metadata.tables[name])
            if name == "changes":  # a migration's changes are told like others
                found = found[: len(rows)]
            for row, now in zip(rows, found, strict=True):
                assert {**now, **row} == now, name
        (mirror,) = before["mirrors"]
        (book,) = read(conn, metadata.tables["mirror_books"])
        assert (book["mirror_id"], book["epoch"], book["seq"]) == (mirror["id"], "7", 7)
        assert book["mark"] is None
        (beacon,) = read(conn, metadata.tables["beacons"])
        assert beacon["given_keys"] == beacon["next_key"] and beacon["said_type"] is None
        for table in ADDED - {"mirror_books"}:
            assert read(conn, metadata.tables[table]) == []


ADDED = {"mirror_books", "mirror_halts", "former_beacons"}


def test_a_database_of_a_newer_release_is_named_and_left_alone(empty):
    migrate_if_due(empty)
    with empty.begin() as conn:
        conn.exec_driver_sql("UPDATE alembic_version SET version_num = '0999'")
    with pytest.raises(StorageError) as caught:
        migrate_if_due(empty)
    assert caught.value.code == "database_newer"
    assert "0999" in str(caught.value) and newest_revision() in str(caught.value)
    with empty.begin() as conn:
        assert set(inspect(conn).get_table_names()) >= set(metadata.tables)


def test_a_failed_migration_is_named(tmp_path):
    (tmp_path / "beacon-ota.db").write_bytes(b"this is no database, and long enough to tell" * 99)
    with pytest.raises(Exception) as caught:
        migrate_if_due(connect(sqlite_url(tmp_path)))
    assert "not a database" in str(caught.value)


def test_offline_needs_data(tmp_path):
    with pytest.raises(ReachError) as caught, open_offline(tmp_path):
        pass
    assert caught.value.code == "data_missing"


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
