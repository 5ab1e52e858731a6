"""What the tests of provisioning share: a release, an orchestrator, the command line."""

import pytest

from beacon_ota.cli import main
from beacon_ota.console import output
from tests.firmware.beacons import make
from tests.orchestrator.world import Server, environment
from tests.provision.scene import PASSWORD, PIN


@pytest.fixture(scope="session")
def v1(small_core) -> bytes:
    """The release that beacons of these tests run, built once for all tests of a worker."""
    return make(small_core, "1.0.0")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("orchestrator") / "data") as server:
        server.admin().create_site("hq")
        yield server


@pytest.fixture
def go(server, tmp_path, monkeypatch, capsys):
    """Run a command; returns its output, checks its exit code."""
    for name, value in environment(tmp_path, server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(output.console, "_width", 200)  # its property would be left set
    monkeypatch.setattr(output.error_console, "_width", 200)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pin").write_text(PIN + "\n")
    (tmp_path / "wifi").write_text(PASSWORD)

    def go(*args: str, code: int | tuple[int, ...] = 0) -> str:
        with pytest.raises(SystemExit) as done:
            main(list(args))
        said = capsys.readouterr()
        expected = code if isinstance(code, tuple) else (code,)
        assert (done.value.code or 0) in expected, said
        return said.out if code == 0 else said.out + said.err

    return go
