"""What a database says stays with it: no SQL, no value of a row leaves in answers or in the log."""

import asyncio
import logging
import sqlite3

import pytest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from beacon_ota.errors import BeaconOtaError
from beacon_ota.orchestrator.db.connection import (
    StorageError,
    connect,
    describe_error,
    sqlite_url,
    storage_errors,
)
from beacon_ota.orchestrator.db.database import Database
from beacon_ota.orchestrator.db.schema_version import migrate_if_due, open_offline
from beacon_ota.orchestrator.db.tables import tokens
from beacon_ota.orchestrator.settings import Settings
from tests.orchestrator.postgres import cluster
from tests.orchestrator.server.test_tls import refused
from tests.orchestrator.world import Server, beacons, template, until

SECRET = "whsec_c2VjcmV0LW9mLWEtd2ViaG9vaw"
WORDS = ("INSERT", "SELECT", "VALUES", "DETAIL", SECRET, "digest", "[SQL", "parameters")


def insert_twice(conn) -> None:
    for _ in range(2):
        conn.execute(
            text(
                "INSERT INTO tokens (id, name, role, digest, created_at)"
                " VALUES (:i, :n, 'x', :i, 1)"
            ),
            {"i": SECRET, "n": SECRET},
        )


def insert_null(conn) -> None:
    conn.execute(text("INSERT INTO tokens (id, name) VALUES (:i, :i)"), {"i": SECRET})


def cast(conn) -> None:
    conn.execute(text("SELECT CAST(:i AS integer) + nowhere"), {"i": SECRET})


@pytest.mark.parametrize("where", ["sqlite", "postgresql"])
@pytest.mark.parametrize("work", [insert_twice, insert_null, cast])
def test_errors_of_statements_are_named_by_kind_only(tmp_path, where, work, caplog):
    if where == "sqlite":
        (tmp_path / "beacon-ota.db").write_bytes(template())
        url = sqlite_url(tmp_path)
    else:
        url = cluster().create_database()

    async def main() -> None:
        db = Database(url)
        db.start()
        try:
            for call in (db.write, db.read, lambda one: db.read_in_order(one, then=print)):
                try:
                    await call(work)
                except StorageError as error:
                    assert error.code == "storage" and error.__cause__ is None
                    assert error.__suppress_context__ or error.__context__ is None
                    logging.getLogger("test").exception("failed: %s", error.as_dict())
                else:
                    raise AssertionError("it was taken")
        finally:
            await db.stop()

    asyncio.run(main())
    assert caplog.text.count("failed: ") == 3
    said = "\n".join(
        line for line in caplog.text.splitlines() if not line.startswith(("  File", "    "))
    )
    assert not [word for word in WORDS if word in said], said


def test_engines_hide_parameters():
    for url in ("sqlite://", "postgresql://u:p@localhost/x"):
        engine = connect(url)
        assert engine.hide_parameters
        engine.dispose()
    with pytest.raises(SQLAlchemyError) as caught, connect("sqlite://").connect() as conn:
        conn.execute(text("INSERT INTO nowhere VALUES (:x)"), {"x": SECRET})
    assert SECRET not in str(caught.value)


def test_reasons_are_words():
    error = sqlite3.OperationalError(f"near {SECRET!r}: syntax error")
    assert SECRET not in describe_error(error)
    with pytest.raises(StorageError) as caught, storage_errors():
        raise error
    assert SECRET not in str(caught.value)
    with pytest.raises(BeaconOtaError), storage_errors():
        raise BeaconOtaError("x", "passes")
    with pytest.raises(KeyError), storage_errors():
        raise KeyError("passes")


def test_secrets_are_in_no_repr(tmp_path):
    from beacon_ota.orchestrator.core.fleet_records import BeaconState
    from beacon_ota.orchestrator.rollout.types import Beacon

    settings = Settings(
        tmp_path, database="postgresql://u:hunter2@h/x", upstream_token="bota_1_hunter2"
    )
    assert "hunter2" not in repr(settings)
    beacon = Beacon("b", "esp32c3", "1.0.0")
    node = BeaconState(beacon, b"hunter2", b"hunter2", (b"hunter2",), None, None)  # type: ignore[arg-type]
    assert "hunter2" not in repr(node)


@pytest.mark.parametrize("size", [0, 40, 4096, 60_000])
def test_a_damaged_database_is_named(tmp_path, size):
    data = tmp_path / "data"
    data.mkdir()
    whole = template()
    (data / "beacon-ota.db").write_bytes(whole[:size] + b"\xff" * (len(whole) - size))
    if size:
        code = refused_start(tmp_path)
        assert "database" in code or "storage" in code or "migration" in code, code
        with pytest.raises(StorageError), open_offline(data) as conn:
            conn.exec_driver_sql("SELECT count(*) FROM tokens, audit, events, beacons").scalar()
    else:
        with pytest.raises(StorageError):
            migrate_if_due(connect(sqlite_url(data)))


def refused_start(tmp_path) -> str:
    import subprocess

    from tests.orchestrator.world import COMMAND, DEADLINE_S

    done = subprocess.run(
        [str(COMMAND), "serve", f"--data={tmp_path / 'data'}", "--port=0", "--insecure"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


def test_folders_that_are_of_no_use_are_named(tmp_path):
    (tmp_path / "data").write_text("a file")
    assert "data_unusable" in refused(tmp_path)


def test_authentication_while_the_database_restarts(tmp_path):
    """Refused by name while it is away, and right again when it is back."""
    with Server(tmp_path / "data", f"--database={cluster().create_database()}") as server:
        admin = server.admin()
        (beacon,) = beacons(server, 1)
        cluster().pg_ctl("-m", "immediate", "-w", "stop")
        try:
            for path in ("/api/tokens/me", "/api/beacons", "/health", "/metrics"):
                answer = admin_get(server, path)
                assert answer.status_code == 503, (path, answer.text)
                assert answer.json()["code"] == "storage" and "SELECT" not in answer.text
            page = admin_get(server, "/", cookie="beacon_ota=" + "a" * 43)
            assert page.status_code == 503 and "SELECT" not in page.text
            assert beacon.poll().status == 204
        finally:
            cluster().start()
        until(lambda: admin_get(server, "/api/tokens/me").status_code == 200)
        assert admin.list_tokens()
        assert "Traceback" not in server.log()
        assert not [word for word in WORDS if word in server.log()]


def admin_get(server, path: str, cookie: str = ""):
    import requests

    headers = {"Cookie": cookie} if cookie else {"Authorization": f"Bearer {server.token}"}
    return requests.get(server.url + path, headers=headers, timeout=60)


def test_a_token_of_before_is_found(tmp_path):
    (tmp_path / "beacon-ota.db").write_bytes(template())
    with open_offline(tmp_path) as conn:
        _row, token = tokens.create(conn, "a", "viewer", 1.0)
    with open_offline(tmp_path) as conn:
        found = tokens.find(conn, token, 2.0)
        assert found is not None and found.name == "a"
