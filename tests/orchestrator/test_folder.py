"""A data folder is one orchestrator's: a second one would not hear what the first has halted."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator import folder
from tests.orchestrator.postgres import cluster
from tests.orchestrator.world import COMMAND, DEADLINE_S, Server, until


def refused(data: Path, *options: str) -> str:
    """Start another orchestrator, which ends by itself; return what it says."""
    command = [str(COMMAND), "serve", f"--data={data}", "--port=0", "--insecure", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_second_orchestrator_on_a_folder_is_refused_and_the_first_goes_on(tmp_path):
    with Server(tmp_path / "data") as server:
        assert "data_in_use" in refused(server.data)
        assert server.admin().call("GET", "/api/beacons")["total"] == 0
        server.kill()
        server.start()  # who was killed holds nothing
        assert server.admin().call("GET", "/api/beacons")["total"] == 0
        assert server.stop() == 0
        server.start()


def test_a_second_mirror_on_a_folder_is_refused_and_the_first_goes_on(tmp_path):
    """Nor may a mirror and an orchestrator share one, whichever comes first."""
    with Server(tmp_path / "primary") as primary:
        made = primary.admin().create_mirror("here", "")
        (tmp_path / "token").write_text(made["token"])
        options = (f"--upstream={primary.url}", f"--upstream-token-file={tmp_path / 'token'}")
        with Server(tmp_path / "mirror", *options) as mirror:

            def in_step() -> bool:
                health = requests.get(mirror.url + "/health", timeout=DEADLINE_S).json()
                return health["mirror"]["in_step"]

            until(in_step, what="in step with its primary")
            for data, more in (
                (mirror.data, options),
                (mirror.data, ()),
                (primary.data, options),
            ):
                assert "data_in_use" in refused(data, *more)
            assert in_step()
            mirror.kill()
            assert "data_in_use" in refused(primary.data, *options)
            mirror.start()  # who was killed holds nothing
            until(in_step, what="in step again")


def test_workers_hold_it_together_and_no_longer_than_their_parent(tmp_path):
    url = cluster().create_database()
    with Server(tmp_path / "data", f"--database={url}", "--workers=2") as server:
        assert "data_in_use" in refused(server.data, f"--database={url}")
        server.kill()
        server.start()
        assert server.stop() == 0


@pytest.mark.skipif(os.name == "nt", reason="nothing is held there")
def test_what_is_held_and_what_cannot_be(tmp_path):
    with folder.lock_folder(tmp_path):
        with pytest.raises(UsageError) as caught, folder.lock_folder(tmp_path):
            pass
        assert caught.value.code == "data_in_use"
    (tmp_path / folder.LOCK_FILE).unlink()
    (tmp_path / folder.LOCK_FILE).mkdir()
    with pytest.raises(UsageError) as caught, folder.lock_folder(tmp_path):
        pass
    assert caught.value.code == "data_unusable"


@pytest.mark.parametrize("name", ["replays", "incoming", "blobs", "in-use"])
def test_what_is_in_the_way_is_named(tmp_path, name):
    data = tmp_path / "data"
    data.mkdir()
    if name in ("incoming", "blobs"):
        (data / name).write_text("a file")
    else:
        (data / name).mkdir()
    said = "".join(refused(data).split())  # lines are broken anywhere
    assert "data_unusable" in said and name in said


def test_what_cannot_be_swept_keeps_nobody_from_starting(tmp_path):
    with Server(tmp_path / "data") as server:
        server.stop()
        (server.data / "incoming" / "upload-x").mkdir()
        (server.data / "audit-head").unlink()
        (server.data / "audit-head").mkdir()
        server.start()
        server.stop()
        assert "upload-x" in server.log() and "Traceback" not in server.log()


def test_a_disk_without_room_for_the_memory_of_requests_is_named(tmp_path):
    """Not killed by the first byte that finds no block."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)]
    try:
        made = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        made = False
    if not made:
        pytest.skip("no disk can be mounted here")
    try:
        with (disk / "other").open("wb", 0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        program = (
            "import sys; from pathlib import Path\n"
            "from beacon_ota.errors import UsageError\n"
            "from beacon_ota.orchestrator.core.replay import ReplayGuard\n"
            "try: ReplayGuard(Path(sys.argv[1]), 1.9e9, fresh=True)\n"
            "except UsageError as error: print(error.code)\n"
        )
        command = [sys.executable, "-c", program, str(disk / "replays")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode != -signal.SIGBUS
        assert done.stdout == "data_unusable\n", done.stderr
    finally:
        subprocess.run(["umount", str(disk)], check=True)
