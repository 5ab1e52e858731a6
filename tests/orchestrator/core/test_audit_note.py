"""A database that was restored from a backup: noticed, and nothing that was halted goes on."""

import shutil
import sqlite3

import pytest

from beacon_ota.orchestrator.core.audit_note import NOTE_FILE
from tests.orchestrator.world import until, upload

EVERYBODY = {"preset": "all-at-once", "window": "00:00-24:00"}


def back_up(local, to) -> None:
    source = sqlite3.connect(local.service.settings.data / "beacon-ota.db")
    with sqlite3.connect(to) as target:
        source.backup(target)
    target.close()
    source.close()


def restore(local, backup) -> None:
    local.stop()
    data = local.service.settings.data
    for name in ("beacon-ota.db-wal", "beacon-ota.db-shm"):
        (data / name).unlink(missing_ok=True)
    shutil.copy(backup, data / "beacon-ota.db")
    local.start()


def test_what_was_halted_after_the_backup_stays_with_nobody(local, tmp_path):
    admin = local.admin()
    release = upload(admin, "1.1.0", tmp_path, channel="stable")["firmware_id"]
    (beacon,) = local.beacons(1)
    rollout = admin.create_rollout(release, EVERYBODY)["rollout_id"]
    back_up(local, tmp_path / "backup.db")
    admin.post_rollout_action(rollout, "halt", "a bad release")
    restore(local, tmp_path / "backup.db")
    beacon.connect(local.url)
    local.clock.at += 1
    assert beacon.poll().headers["x-reason"] == "paused"
    shown = local.admin().get_rollout(rollout)
    assert (shown["status"], shown["reason"], shown["by"]) == ("paused", "restored", "engine")
    local.admin().post_rollout_action(rollout, "resume", "it is good after all")
    local.stop()
    local.start()  # noticed once
    beacon.connect(local.url)
    local.clock.at += 1
    assert beacon.offer() and local.admin().get_rollout(rollout)["status"] == "active"


def test_another_history_of_the_same_length_is_noticed(local, tmp_path):
    admin = local.admin()
    release = upload(admin, "1.1.0", tmp_path, channel="stable")["firmware_id"]
    rollout = admin.create_rollout(release, EVERYBODY)["rollout_id"]
    back_up(local, tmp_path / "backup.db")
    admin.post_rollout_action(rollout, "halt", "a bad release")
    restore(local, tmp_path / "backup.db")
    local.admin().post_rollout_action(rollout, "abort", "another history")
    restore(local, tmp_path / "backup.db")
    assert local.admin().get_rollout(rollout)["status"] == "paused"


@pytest.mark.parametrize("note", [None, b"", b"x", b"1", b"9" * 400, b"\xff\xfe", b"-1 abc"])
def test_a_note_that_is_not_there_or_says_nothing_stops_nothing(local, tmp_path, note):
    admin = local.admin()
    release = upload(admin, "1.1.0", tmp_path, channel="stable")["firmware_id"]
    rollout = admin.create_rollout(release, EVERYBODY)["rollout_id"]
    local.stop()
    file = local.service.settings.data / NOTE_FILE
    file.unlink()
    if note is not None:
        file.write_bytes(note)
    local.start()
    assert local.admin().get_rollout(rollout)["status"] in ("active", "paused")
    local.admin().post_rollout_action(rollout, "abort")


def test_the_pause_holds_while_the_database_refuses_it(local, tmp_path):
    admin = local.admin()
    release = upload(admin, "1.1.0", tmp_path, channel="stable")["firmware_id"]
    taken, other = local.beacons(2)
    rollout = admin.create_rollout(release, EVERYBODY)["rollout_id"]
    assert taken.download(taken.offered()).status == 200  # to be concluded as lost
    backup = tmp_path / "backup.db"
    back_up(local, backup)
    with sqlite3.connect(backup) as conn:  # a disk that is full refuses in other words
        conn.execute(
            "CREATE TRIGGER refused BEFORE UPDATE ON rollouts BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    conn.close()
    admin.post_rollout_action(rollout, "halt", "a bad release")
    restore(local, backup)
    other.connect(local.url)
    for _ in range(4):
        local.go_on(1200)  # the silence of the one before is over
        assert other.poll().headers["x-reason"] == "paused"
    with sqlite3.connect(local.service.settings.data / "beacon-ota.db") as conn:
        conn.execute("DROP TRIGGER refused")
    conn.close()
    until(lambda: not local.service.restored)
    assert local.admin().get_rollout(rollout)["status"] == "paused"
    local.admin().post_rollout_action(rollout, "resume", "it is good after all")
    assert other.offer()
