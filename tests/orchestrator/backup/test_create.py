"""Backups as a person takes them, while the server writes: whole, checked, nobody else's."""

import hashlib
import json
import os
import sqlite3
import stat
import subprocess
import tarfile
import threading
from contextlib import closing
from pathlib import Path

import pytest

from beacon_ota.orchestrator.backup import create as creating
from beacon_ota.orchestrator.backup.contents import DATABASE, INDEX, open_backup
from beacon_ota.orchestrator.backup.create import BackupSource, create_backup
from beacon_ota.orchestrator.db.schema_version import newest_revision
from tests.orchestrator.world import COMMAND, DEADLINE_S, Server, beacons, environment, upload


def call(*words: object, umask: int = 0o022, **env: str) -> subprocess.CompletedProcess:
    """Run a command as a person does."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("BEACON_OTA_")}
    return subprocess.run(
        [str(COMMAND), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
        umask=umask,
        env={**clean, "COLUMNS": "300", "NO_COLOR": "1", **env},
    )


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A server that runs, with releases, beacons and trusted keys."""
    folder = tmp_path_factory.mktemp("filled")
    with Server(folder / "data") as server:
        admin = server.admin()
        for version in ("1.1.0", "1.2.0"):
            upload(admin, version, folder)
        (server.data / "keys.json").write_text('{"threshold": 1, "keys": []}')
        beacons(server, 3)
        yield server


def files_of(backup: Path) -> dict[str, bytes]:
    if backup.is_dir():
        found = {p.relative_to(backup).as_posix(): p for p in backup.rglob("*") if p.is_file()}
        return {name: path.read_bytes() for name, path in found.items()}
    with tarfile.open(backup) as archive:
        return {one.name: archive.extractfile(one).read() for one in archive}  # type: ignore


def rows(database: bytes, folder: Path, query: str) -> list:
    (folder / "looked-at.db").write_bytes(database)
    with closing(sqlite3.connect(folder / "looked-at.db")) as conn:
        return conn.execute(query).fetchall()


@pytest.mark.parametrize("name", ["backup.tar", "backup"])
def test_a_backup_of_a_running_server_is_whole(filled, tmp_path, name):
    done = call("backup", tmp_path / name, "--data", filled.data, "--json", umask=0)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["images"], said["keys"], said["missing"]) == (2, True, [])
    assert said["schema"] == newest_revision()
    files = files_of(tmp_path / name)
    index = json.loads(files[INDEX])
    assert set(index["files"]) == set(files) - {INDEX}
    for listed, entry in index["files"].items():
        data = files[listed]
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        if "/" in listed:
            assert listed == f"blobs/{entry['sha256']}"
    assert files["keys.json"] == (filled.data / "keys.json").read_bytes()
    assert rows(files[DATABASE], tmp_path, "SELECT count(*) FROM beacons") == [(3,)]
    # Nobody else's, although the umask would allow everything; and nothing else lies about.
    for path in (tmp_path / name, *(tmp_path / name).rglob("*")):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "looked-at.db"])
    assert filled.admin().call("GET", "/api/beacons")["total"] == 3


def test_a_copy_is_of_one_moment_however_much_is_written_meanwhile(filled, tmp_path, monkeypatch):
    """Piece by piece, while the server commits between the pieces: it comes to its end."""
    monkeypatch.setattr(creating, "_PAGES", 1)
    seen, number = [], iter(range(100_000))
    admin = filled.admin()

    def told(done: int, total: int) -> None:
        if len(seen) < 20:  # a commit between two pieces
            admin.create_site(f"while-{next(number)}")
        seen.append((done, total))

    before = admin.call("GET", "/api/sites")
    index = create_backup(BackupSource(filled.data), tmp_path / "backup", told)
    assert len(seen) > 20 and not index.missing
    assert seen[-1] == (index.size, index.size)
    found = rows((tmp_path / "backup" / DATABASE).read_bytes(), tmp_path, "SELECT path FROM sites")
    assert len(found) == len(before["sites"])  # as it was when the copy began


def test_a_damaged_image_is_named_and_left_out(tmp_path):
    with Server(tmp_path / "data") as server:
        upload(server.admin(), "1.1.0", tmp_path)
        upload(server.admin(), "1.2.0", tmp_path)
        server.stop()
    first, second = sorted((server.data / "blobs").iterdir())
    second.write_bytes(second.read_bytes()[:-1] + b"?")
    done = call("backup", tmp_path / "backup.tar", "--data", server.data, "--json")
    assert done.returncode == 1 and "images_damaged" in done.stderr and second.name in done.stderr
    assert json.loads(done.stdout)["missing"] == [second.name]
    with open_backup(tmp_path / "backup.tar") as source:
        assert source.index.images == [first.name] and source.index.missing == (second.name,)


def test_a_damaged_database_is_no_backup(tmp_path):
    with Server(tmp_path / "data") as server:
        beacons(server, 40)
        server.stop()
    file = server.data / "beacon-ota.db"
    data = bytearray(file.read_bytes())
    for page in range(3, len(data) // 4096 - 1):
        data[page * 4096 : page * 4096 + 64] = os.urandom(64)
    file.write_bytes(data)
    done = call("backup", tmp_path / "backup.tar", "--data", server.data)
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert "database_damaged" in done.stderr or "storage" in done.stderr
    assert not (tmp_path / "backup.tar").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize(
    ("name", "made", "code"),
    [
        ("backup.tar", "file", "backup_exists"),
        ("backup", "file", "backup_exists"),
        ("backup", "full", "backup_exists"),
        ("backup.tar", "folder", "backup_exists"),
        ("backup.tar", "dangling", "backup_exists"),
        ("backup.tar.gz", None, "backup_name"),
        ("gone/backup.tar", None, "backup_unwritable"),
        ("gone/backup", None, "backup_unwritable"),
    ],
)
def test_where_no_backup_goes(filled, tmp_path, name, made, code):
    target = tmp_path / name
    if made == "file":
        target.write_text("precious")
    elif made in ("full", "folder"):
        target.mkdir()
        if made == "full":
            (target / "precious").touch()
    elif made == "dangling":
        target.symlink_to(tmp_path / "nowhere")
    done = call("backup", target, "--data", filled.data)
    assert done.returncode == 2 and code in done.stderr and "Traceback" not in done.stderr
    if made == "file":
        assert target.read_text() == "precious"


def test_an_empty_folder_takes_a_backup(filled, tmp_path):
    (tmp_path / "backup").mkdir()
    assert call("backup", tmp_path / "backup", "--data", filled.data).returncode == 0
    assert (tmp_path / "backup" / INDEX).is_file()


def test_data_that_are_none(tmp_path):
    (tmp_path / "empty").mkdir()
    for data in (tmp_path / "empty", tmp_path / "gone"):
        done = call("backup", tmp_path / "backup.tar", "--data", data)
        assert done.returncode == 3 and "data_missing" in done.stderr, done.stderr
        assert sorted(p.name for p in tmp_path.iterdir()) == ["empty"]
    with closing(sqlite3.connect(tmp_path / "empty" / DATABASE)) as conn:
        conn.execute("CREATE TABLE cooking (recipe TEXT)")
    done = call("backup", tmp_path / "backup.tar", "--data", tmp_path / "empty")
    assert done.returncode == 3 and "data_missing" in done.stderr, done.stderr


def test_postgresql_has_tools_of_its_own(tmp_path):
    url = "postgresql+asyncpg://beacon:secret@db.example/fleet"
    done = call("backup", tmp_path / "b.tar", BEACON_OTA_DATABASE=url)
    assert done.returncode == 2 and "backup_postgresql" in done.stderr
    assert "pg_dump" in done.stderr and "postgresql://beacon@db.example/fleet" in done.stderr
    done = call("restore", tmp_path / "b.tar", "--database", url)
    assert done.returncode == 2 and "pg_restore" in done.stderr and "secret" not in done.stderr


def test_keys_of_another_file_are_in_it(filled, tmp_path):
    (tmp_path / "trusted.json").write_text("{}")
    backup = tmp_path / "backup"
    done = call("backup", backup, "--data", filled.data, "--keys", tmp_path / "trusted.json")
    assert done.returncode == 0 and (backup / "keys.json").read_text() == "{}"
    done = call("backup", tmp_path / "b", "--data", filled.data, "--keys", tmp_path / "gone.json")
    assert done.returncode == 1 and "keys_missing" in done.stderr
    assert not (tmp_path / "b").exists()


def test_images_that_are_kept_elsewhere_are_in_it(tmp_path):
    images = tmp_path / "images"
    with Server(tmp_path / "data", f"--images={images}") as server:
        upload(server.admin(), "1.1.0", tmp_path)
        done = call("backup", tmp_path / "wrong.tar", "--data", server.data)
        assert done.returncode == 1 and "--images" in done.stderr
        right = call("backup", tmp_path / "b.tar", "--data", server.data, "--images", images)
        assert right.returncode == 0, right.stderr


@pytest.mark.parametrize("umask", [0, 0o022, 0o477])
def test_the_database_and_its_log_are_nobody_elses(tmp_path, umask):
    """Also those that an earlier release, or a copy by hand, has left open to everybody."""
    data = tmp_path / "data"
    data.mkdir()
    before = os.umask(umask)
    try:
        server = Server(data)
    finally:
        os.umask(before)
    with server:
        beacons(server, 1)
        for _ in range(2):
            names = {path.name: path for path in data.iterdir()}
            for name in ("beacon-ota.db", "beacon-ota.db-wal", "beacon-ota.db-shm"):
                assert stat.S_IMODE(names[name].stat().st_mode) == 0o600, name
            server.stop()
            (data / "beacon-ota.db").chmod(0o666)
            server.start()


def test_a_full_disk_is_named_and_leaves_nothing(filled, tmp_path):
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
        for name in ("backup.tar", "backup"):
            done = call("backup", disk / name, "--data", filled.data)
            assert done.returncode in (2, 3) and "Traceback" not in done.stderr, done.stderr
            assert "full" in done.stderr or "No space" in done.stderr
            assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_two_backups_at_once(filled, tmp_path):
    done = []
    threads = [
        threading.Thread(
            target=lambda n=n: done.append(call("backup", tmp_path / f"{n}", "--data", filled.data))
        )
        for n in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.returncode for one in done] == [0, 0]


def test_what_a_person_sees(filled, tmp_path):
    env = environment(tmp_path, filled)
    done = call("backup", tmp_path / "b.tar", "--data", filled.data, COLUMNS=env["COLUMNS"])
    assert "images: 2" in done.stdout and newest_revision() in done.stdout
