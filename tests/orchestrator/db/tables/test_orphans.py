"""Images whose database is missing, or an older copy, are not deleted by a start."""

import shutil
import sqlite3

from hypothesis import given
from hypothesis import strategies as st

from beacon_ota.orchestrator.db.tables.orphans import GRACE_S, select_due
from tests.orchestrator.world import Local, template, upload

DAY = 86400.0
DIGESTS = st.sets(st.sampled_from("abcdef"))


def images(local: Local) -> set[str]:
    return {path.name for path in (local.service.settings.data / "blobs").iterdir()}


def copy(local: Local, to) -> None:
    """Copy a database as `sqlite3 .backup` does."""
    source = sqlite3.connect(local.service.settings.data / "beacon-ota.db")
    target = sqlite3.connect(to)
    source.backup(target)
    source.close()
    target.close()


def put_back(local: Local, file) -> None:
    data = local.service.settings.data
    for name in ("beacon-ota.db", "beacon-ota.db-wal", "beacon-ota.db-shm"):
        (data / name).unlink(missing_ok=True)
    shutil.copy(file, data / "beacon-ota.db")
    local._token_file.unlink(missing_ok=True)


def test_a_new_database_deletes_no_image(local, tmp_path):
    upload(local.admin(), "1.1.0", tmp_path)
    copy(local, tmp_path / "mine.db")
    before = images(local)
    local.stop()
    (tmp_path / "empty.db").write_bytes(template())
    put_back(local, tmp_path / "empty.db")
    for _ in range(2):
        local.start()
        assert local.admin().list_firmwares() == []
        local.stop()
        local.clock.at += 2 * GRACE_S
    token = local._token_file
    put_back(local, tmp_path / "mine.db")
    token.write_text(local.token)
    assert images(local) == before


def test_an_older_database_deletes_none_for_a_while(local, tmp_path):
    first = upload(local.admin(), "1.1.0", tmp_path)
    copy(local, tmp_path / "older.db")
    upload(local.admin(), "1.2.0", tmp_path)
    both = images(local)
    assert len(both) == 2
    local.stop()
    token = local.token
    put_back(local, tmp_path / "older.db")
    local._token_file.write_text(token)
    local.start()
    assert images(local) == both
    local.stop()
    local.clock.at += GRACE_S - DAY
    local.start()
    assert images(local) == both
    # What comes back before that is there already.
    upload(local.admin(), "1.2.0", tmp_path)
    local.stop()
    local.clock.at += 2 * DAY
    local.start()
    assert images(local) == both
    local.stop()
    put_back(local, tmp_path / "older.db")
    local._token_file.write_text(token)
    for _ in range(2):
        local.start()
        left = images(local)
        local.stop()
        local.clock.at += GRACE_S
    assert left == {first["blob"]}


@given(st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 1e10)), DIGESTS, st.floats(0, 1e10))
def test_what_is_removed_was_found_long_ago_prop(marks, found, now):
    due, kept = select_due(marks, found, now)
    assert due <= found and due | set(kept) == found and not due & set(kept)
    for digest in due:
        assert now - marks[digest] >= GRACE_S
    assert all(at <= now for at in kept.values())
    assert select_due(kept, found, now)[0] == set()
