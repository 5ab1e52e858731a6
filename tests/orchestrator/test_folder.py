"""A data folder is one orchestrator's: a second one would not hear what the first has halted."""

import os
import subprocess
from pathlib import Path

import pytest

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator import folder
from tests.orchestrator.postgres import cluster
from tests.orchestrator.world import COMMAND, DEADLINE_S, Server


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


def test_workers_hold_it_together_and_no_longer_than_their_parent(tmp_path):
    url = cluster().database()
    with Server(tmp_path / "data", f"--database={url}", "--workers=2") as server:
        assert "data_in_use" in refused(server.data, f"--database={url}")
        server.kill()
        server.start()
        assert server.stop() == 0


@pytest.mark.skipif(os.name == "nt", reason="nothing is held there")
def test_what_is_held_and_what_cannot_be(tmp_path):
    with folder.held(tmp_path):
        with pytest.raises(UsageError) as caught, folder.held(tmp_path):
            pass
        assert caught.value.code == "data_in_use"
    (tmp_path / folder.FILE).unlink()
    (tmp_path / folder.FILE).mkdir()
    with pytest.raises(UsageError) as caught, folder.held(tmp_path):
        pass
    assert caught.value.code == "data_unusable"
