"""Backups put back: what was halted since goes to nobody, and half of one is none."""

import io
import json
import shutil
import sqlite3
import stat
import subprocess
import tarfile
from contextlib import closing

import pytest

from beacon_ota.client import Client
from beacon_ota.errors import BeaconOtaError
from beacon_ota.orchestrator import folder
from beacon_ota.orchestrator.backup import restore as restoring
from beacon_ota.orchestrator.backup.contents import DATABASE, INDEX
from beacon_ota.orchestrator.backup.create import BackupSource, create_backup
from beacon_ota.orchestrator.backup.restore import restore_backup
from beacon_ota.orchestrator.db.schema_version import newest_revision
from tests.orchestrator.backup.test_create import call
from tests.orchestrator.world import Server, beacons, until, upload

EVERYBODY = {"preset": "all-at-once", "window": "00:00-24:00"}


@pytest.fixture(scope="module")
def taken(tmp_path_factory):
    """A backup of a server with a rollout under way, that was halted afterwards."""
    tmp = tmp_path_factory.mktemp("taken")
    with Server(tmp / "data") as server:
        admin = server.admin()
        release = upload(admin, "1.1.0", tmp, channel="stable")["firmware_id"]
        beacons(server, 2)
        rollout = admin.create_rollout(release, EVERYBODY)["rollout_id"]
        (server.data / "keys.json").write_text('{"threshold": 1, "keys": []}')
        create_backup(BackupSource(server.data), tmp / "backup")
        (server.data / "keys.json").unlink()
        admin.post_rollout_action(rollout, "halt", "a bad release")
        server.stop()
    with tarfile.open(tmp / "backup.tar", "w") as archive:
        for file in sorted((tmp / "backup").rglob("*")):
            if file.is_file():
                archive.add(file, file.relative_to(tmp / "backup").as_posix())
    return tmp, rollout, server.token


@pytest.fixture
def backup(taken, tmp_path):
    """A copy of it that a test may change."""
    shutil.copytree(taken[0] / "backup", tmp_path / "backup")
    return tmp_path / "backup"


@pytest.mark.parametrize("name", ["backup", "backup.tar"])
@pytest.mark.parametrize("there", ["gone", "empty"])
def test_on_another_machine_what_was_halted_since_is_paused(taken, tmp_path, name, there):
    tmp, rollout, token = taken
    data = tmp_path / "data"
    if there == "empty":
        data.mkdir()
        (data / "lost+found").mkdir()  # the root of a file system
    done = call("restore", tmp / name, "--data", data, "--json", umask=0)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["images"], said["keys"], said["schema"]) == (1, True, newest_revision())
    assert "serve" in said["next"][0] and "paus" in said["next"][0]
    assert not (data / folder.RESTORING).exists()
    for path in data.rglob("*"):
        if path.name != "audit-head":
            assert not stat.S_IMODE(path.stat().st_mode) & 0o077 or path.name == "lost+found", path
    (data / "keys.json").unlink()
    (data.with_name("data.token")).write_text(token)
    with Server(data) as server:
        admin = Client(server.url, token)
        until(lambda: admin.get_rollout(rollout)["status"] == "paused")
        shown = admin.get_rollout(rollout)
        assert (shown["reason"], shown["by"]) == ("restored", "engine")
        assert admin.call("GET", "/api/beacons")["total"] == 2
        admin.post_rollout_action(rollout, "resume", "it is good after all")
        server.stop()
        server.start()  # once
        assert Client(server.url, token).get_rollout(rollout)["status"] == "active"
        done = call("restore", tmp / name, "--data", data)
        assert done.returncode == 2 and "data_in_use" in done.stderr
        assert "stop that orchestrator" in done.stderr and "--workers" not in done.stderr


def refusal(backup, data) -> BeaconOtaError:
    """Have a restore refused; nothing is left of it."""
    before = sorted(data.iterdir()) if data.exists() else None
    with pytest.raises(BeaconOtaError) as caught:
        restore_backup(backup, data)
    assert (sorted(data.iterdir()) if data.exists() else None) == before
    return caught.value


def test_a_folder_with_anything_in_it_is_left_alone(backup, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "precious").write_text("x")
    error = refusal(backup, data)
    assert error.code == "data_not_empty" and error.found == "precious"
    done = call("restore", backup, "--data", data)
    assert done.returncode == 2 and "data_not_empty" in done.stderr
    (tmp_path / "file").write_text("x")
    with pytest.raises(BeaconOtaError) as caught:
        restore_backup(backup, tmp_path / "file")
    assert caught.value.code == "data_unusable"


def test_a_folder_in_use_is_left_alone(backup, tmp_path):
    data = tmp_path / "data"
    folder.make_folder(data)
    with folder.lock_folder(data):
        assert refusal(backup, data).code == "data_in_use"
    restore_backup(backup, data)


def damage_missing_index(backup):
    (backup / INDEX).unlink()


def damage_missing_image(backup):
    next((backup / "blobs").iterdir()).unlink()


def damage_image(backup):
    file = next((backup / "blobs").iterdir())
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)


def damage_longer_image(backup):
    file = next((backup / "blobs").iterdir())
    file.write_bytes(file.read_bytes() + b"x")


def damage_link(backup):
    file = next((backup / "blobs").iterdir())
    file.rename(backup / "elsewhere")
    file.symlink_to(backup / "elsewhere")


def damage_database(backup):
    file = backup / DATABASE
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def damage_short_database(backup):
    file = backup / DATABASE
    file.write_bytes(file.read_bytes()[:-4096])


def damage_keys(backup):
    (backup / "keys.json").write_text("{}")


def change(backup, **fields):
    index = json.loads((backup / INDEX).read_text())
    (backup / INDEX).write_text(json.dumps({**index, **fields}))


def without_keys(backup):
    files = json.loads((backup / INDEX).read_text())["files"]
    return {name: entry for name, entry in files.items() if name != "keys.json"}


def damage_index(backup):
    (backup / INDEX).write_bytes((backup / INDEX).read_bytes()[:-20])


def damage_index_deep(backup):
    (backup / INDEX).write_text("[" * 100_000)


def damage_index_names(backup):
    index = json.loads((backup / INDEX).read_text())
    change(backup, files={**index["files"], "../evil": {"bytes": 1, "sha256": "0" * 64}})


def damage_index_size(backup):
    index = json.loads((backup / INDEX).read_text())
    change(backup, files={**index["files"], "keys.json": {"bytes": True, "sha256": "0" * 64}})


def damage_no_database(backup):
    change(backup, files={})


def damage_database_with_its_digest(backup):
    """The index agrees, and the database is broken all the same."""
    file = backup / DATABASE
    data = bytearray(file.read_bytes())
    for page in range(3, len(data) // 4096 - 1):
        data[page * 4096 : page * 4096 + 64] = bytes(range(64))
    agree(backup, bytes(data))


def damage_foreign_database(backup):
    file = backup / "other.db"
    with closing(sqlite3.connect(file)) as conn:
        conn.execute("CREATE TABLE cooking (recipe TEXT)")
    agree(backup, file.read_bytes())
    file.unlink()


def agree(backup, data: bytes) -> None:
    """Replace the database, and have the index agree."""
    import hashlib

    (backup / DATABASE).write_bytes(data)
    index = json.loads((backup / INDEX).read_text())
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change(backup, files={**index["files"], DATABASE: entry})


DAMAGES = [value for name, value in sorted(globals().items()) if name.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_backup_leaves_nothing(backup, tmp_path, damage, packed):
    damage(backup)
    if packed:
        with tarfile.open(tmp_path / "backup.tar", "w") as archive:
            for file in sorted(backup.rglob("*")):
                if not file.is_dir():
                    archive.add(file, file.relative_to(backup).as_posix())
        backup = tmp_path / "backup.tar"
    error = refusal(backup, tmp_path / "data")
    assert error.code == "backup_damaged" and error.exit_code == 1, error


@pytest.mark.parametrize("left", [0, 100, 512, 3000, 20_000, -600])
def test_an_archive_that_was_cut_off(taken, tmp_path, left):
    data = (taken[0] / "backup.tar").read_bytes()
    (tmp_path / "backup.tar").write_bytes(data[:left])
    with tarfile.open(taken[0] / "backup.tar") as archive:
        ends = archive.getmember("keys.json")  # the last one
    if left == -600:
        (tmp_path / "backup.tar").write_bytes(data[: ends.offset + 100])
    assert refusal(tmp_path / "backup.tar", tmp_path / "data").code == "backup_damaged"


def test_members_that_no_backup_has_are_never_unpacked(taken, tmp_path):
    shutil.copy(taken[0] / "backup.tar", tmp_path / "backup.tar")
    with tarfile.open(tmp_path / "backup.tar", "a") as archive:
        for name in ("../evil", "/evil", "restoring", "stops"):
            info = tarfile.TarInfo(name)
            info.size = 4
            archive.addfile(info, io.BytesIO(b"evil"))
    restore_backup(tmp_path / "backup.tar", tmp_path / "data")
    assert not (tmp_path / "evil").exists() and not (tmp_path / "data" / "stops").exists()


def test_a_newer_database_is_named_with_both_versions(backup, tmp_path):
    change(backup, schema="0099")
    error = refusal(backup, tmp_path / "data")
    assert (error.code, error.found, error.expected) == (
        "database_newer",
        "0099",
        newest_revision(),
    )
    change(backup, schema=newest_revision())  # an index that says otherwise
    with closing(sqlite3.connect(backup / DATABASE)) as conn, conn:
        conn.execute("UPDATE alembic_version SET version_num = '0099'")
    agree(backup, (backup / DATABASE).read_bytes())
    error = refusal(backup, tmp_path / "data")
    assert error.code == "database_newer" and "0099" in error.message
    assert newest_revision() in error.message and error.exit_code == 3
    change(backup, format=2)
    assert refusal(backup, tmp_path / "data").code == "backup_newer"


def test_a_server_does_not_start_on_half_a_backup(backup, tmp_path, monkeypatch):
    """Killed in the middle: what is there says so."""
    data = tmp_path / "data"
    change(backup, files=without_keys(backup))

    def killed(*_):
        raise SystemExit

    monkeypatch.setattr(restoring, "note_restored", killed)
    monkeypatch.setattr(restoring, "_remove", lambda path: None)
    with pytest.raises(SystemExit):
        restore_backup(backup, data)
    assert (data / folder.RESTORING).exists() and (data / DATABASE).exists()
    done = call("serve", "--insecure", "--port=0", "--data", data)
    assert done.returncode == 2 and "restore_unfinished" in done.stderr
    done = call("backup", tmp_path / "b.tar", "--data", data)
    assert done.returncode == 2 and "restore_unfinished" in done.stderr
    done = call("restore", backup, "--data", data)
    assert done.returncode == 2 and "data_not_empty" in done.stderr


def test_a_full_disk_is_named_and_leaves_nothing(backup, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(disk)]
    try:
        made = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        made = False
    if not made:
        pytest.skip("no disk can be mounted here")
    try:
        done = call("restore", backup, "--data", disk)
        assert done.returncode in (2, 3) and "Traceback" not in done.stderr, done.stderr
        assert "No space" in done.stderr
        assert not [p for p in disk.iterdir() if p.name != folder.LOCK_FILE]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_no_backup(tmp_path):
    done = call("restore", tmp_path / "gone.tar", "--data", tmp_path / "data")
    assert done.returncode == 1 and "backup_missing" in done.stderr
    (tmp_path / "text").write_text("no archive")
    assert refusal(tmp_path / "text", tmp_path / "data").code == "backup_damaged"
    assert not (tmp_path / "data").exists()
