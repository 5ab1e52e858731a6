"""Migrations: they lead to the schema, keep every row, and refuse a newer database by name."""

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

from beacon_ota.errors import ReachError
from beacon_ota.orchestrator.db.connection import StorageError, connect, sqlite_url
from beacon_ota.orchestrator.db.schema import metadata
from beacon_ota.orchestrator.db.schema_version import (
    MIGRATIONS,
    migrate_if_due,
    newest_revision,
    open_offline,
)
from tests.orchestrator.postgres import cluster


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
