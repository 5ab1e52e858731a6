"""The audit log's chain."""

import json

import pytest
from sqlalchemy import delete, update

from beacon_ota.orchestrator.db.connection import connect, sqlite_url
from beacon_ota.orchestrator.db.schema import audit as table
from beacon_ota.orchestrator.db.tables import audit
from beacon_ota.orchestrator.db.tables.audit import AuditError
from tests.orchestrator.world import template


@pytest.fixture
def conn(tmp_path):
    (tmp_path / "beacon-ota.db").write_bytes(template())
    engine = connect(sqlite_url(tmp_path))
    with engine.connect() as conn, conn.begin():
        for number in range(10):
            audit.append(
                conn, 100.0 + number, "ann", "rollout.paused", f"r{number}", "why", {"n": number}
            )
        yield conn
    engine.dispose()


def test_the_chain_is_whole(conn):
    found = audit.verify_chain(conn)
    assert found["entries"] == 10 and len(found["head"]) == 64
    assert audit.verify_chain(conn, found["head"]) == found


def test_an_empty_log_is_whole():
    assert audit.verify_entries([]) == {"entries": 0, "head": audit.EMPTY_HASH}


@pytest.mark.parametrize(
    "values",
    [
        {"at": 1.0},
        {"actor": "bob"},
        {"action": "rollout.resumed"},
        {"target": "r"},
        {"reason": ""},
        {"detail": json.dumps({"n": 7})},
        {"hash": "0" * 64},
        {"previous": "0" * 64},
    ],
)
def test_a_changed_entry_is_found(conn, values):
    conn.execute(update(table).where(table.c.seq == 5).values(**values))
    with pytest.raises(AuditError) as caught:
        audit.verify_chain(conn)
    assert caught.value.code == "audit_broken"


def test_a_changed_entry_with_its_hash_made_to_fit_breaks_the_next(conn):
    entry = audit.list_entries(conn, after=4, limit=1)[0] | {"actor": "bob"}
    conn.execute(
        update(table).where(table.c.seq == 5).values(actor="bob", hash=audit.entry_hash(entry))
    )
    with pytest.raises(AuditError, match="6 does not follow"):
        audit.verify_chain(conn)


def test_a_dropped_entry_is_found(conn):
    conn.execute(delete(table).where(table.c.seq == 5))
    with pytest.raises(AuditError):
        audit.verify_chain(conn)


def test_a_cut_off_end_is_found_by_the_head_noted_earlier(conn):
    head = audit.verify_chain(conn)["head"]
    conn.execute(delete(table).where(table.c.seq > 8))
    assert audit.verify_chain(conn)["entries"] == 8
    with pytest.raises(AuditError) as caught:
        audit.verify_chain(conn, head)
    assert caught.value.code == "audit_truncated"


def test_filters(conn):
    assert [e["seq"] for e in audit.list_entries(conn, after=2, limit=3)] == [3, 4, 5]
    assert [e["seq"] for e in audit.list_entries(conn, newest=True, limit=2)] == [10, 9]
    assert len(audit.list_entries(conn, action="rollout")) == 10
    assert audit.list_entries(conn, actor="bob") == []
    assert [e["seq"] for e in audit.list_entries(conn, target="r3")] == [4]
