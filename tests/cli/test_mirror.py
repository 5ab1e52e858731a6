"""Mirrors at a terminal: made with a token that nobody else reads, listed, named by a halt."""

import json
import stat

import pytest

from beacon_ota.cli import main
from beacon_ota.cli._support import unconfirmed
from beacon_ota.client import Client
from beacon_ota.console import output
from tests.orchestrator.world import Server, beacons, environment, upload

EVERYBODY = {"preset": "all-at-once", "window": "00:00-24:00"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("server") / "data") as server:
        yield server


@pytest.fixture
def run(server, tmp_path, monkeypatch, capsys):
    """Run a command against the server; returns what it says, checks its exit code."""
    for name, value in environment(tmp_path, server).items():
        monkeypatch.setenv(name, value)
    for console in (output.console, output.error_console):
        monkeypatch.setattr(console, "_width", 300)
    monkeypatch.setattr(unconfirmed, "WAIT_S", 0.6)

    def go(*args: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as done:
            main(list(args))
        said = capsys.readouterr()
        assert (done.value.code or 0) == code, (args, said.out, said.err)
        return said.out if code == 0 else said.err

    return go


def test_the_first_commands_of_the_page(server, run, tmp_path):
    file = tmp_path / "lan.token"
    refused = run("mirror", "add", "lan", "--site", "hq", "--token-file", str(file), code=1)
    assert "site_unknown" in refused and "beacon-ota site add hq" in refused
    assert not file.exists()
    run("site", "add", "hq")
    said = run("mirror", "add", "lan", "--site", "hq", "--token-file", str(file))
    token = file.read_text().strip()
    assert str(file) in said and token not in said
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    mirror = Client(server.url, token)
    assert mirror.call("POST", "/api/mirror/sync", json={"epoch": "0" * 24})["state"]
    # One that is there is not overwritten, and nothing is made that nobody has the token of.
    again = run("mirror", "add", "other", "--site", "hq", "--token-file", str(file), code=2)
    assert "file_exists" in again and file.read_text().strip() == token
    assert [one["name"] for one in server.admin().list_mirrors()] == ["lan"]
    taken = run("mirror", "add", "lan", "--site", "hq", "--token-file", f"{file}2", code=2)
    assert "mirror_taken" in taken and not (tmp_path / "lan.token2").exists()
    made = run("mirror", "add", "third", "--site", "hq", "--token-file", f"{file}3", "--json")
    assert "token" not in json.loads(made) and json.loads(made)["name"] == "third"
    assert run("mirror", "add", "fourth", "--site", "hq").strip()
    for name in ("lan", "third", "fourth"):
        run("mirror", "remove", name, "--yes")


def test_a_halt_names_who_has_not_confirmed_it(server, run, tmp_path):
    admin = server.admin()
    admin.create_site("north")
    beacons(server, 1, site="north")
    mirror = Client(server.url, admin.create_mirror("lan-north", "north")["token"])
    firmware = upload(admin, "1.1.0", tmp_path, channel="stable")["firmware_id"]
    rollout = admin.create_rollout(firmware, EVERYBODY)["rollout_id"]
    status = {"version": "7.7.7", "moves": "", "lease_s": 3600, "skew_s": 0}
    body = {"epoch": "0" * 24, "status": status}
    mirror.call("POST", "/api/mirror/sync", json=body)
    said = run("rollout", "halt", rollout[:8], "--reason", "enough")
    assert "halted" in said and "not confirmed by mirror lan-north (site north) since" in said
    assert "it may hand out until" in said
    assert "not confirmed by mirror lan-north" in run("rollout", "show", rollout)
    (one,) = json.loads(run("rollout", "show", rollout, "--json"))["unconfirmed"]
    assert one["mirror"] == "lan-north" and one["hands_out"]
    run("rollout", "resume", rollout, "--yes")
    (one,) = json.loads(run("rollout", "halt", rollout, "--json"))["unconfirmed"]
    assert one["mirror"] == "lan-north"
    moves = mirror.call("POST", "/api/mirror/sync", json=body)["moves"]
    mirror.call("POST", "/api/mirror/sync", json={**body, "status": {**status, "moves": moves}})
    assert "not confirmed" not in run("rollout", "show", rollout)
    said = run("release", "deprecate", "1.1.0", "--yes")
    assert "deprecated" in said and "not confirmed by mirror lan-north" in said
    assert "not confirmed by mirror lan-north" in run("release", "show", "1.1.0")


def test_the_listing_says_what_is_wrong(server, run):
    admin = server.admin()
    admin.create_site("south")
    mirror = Client(server.url, admin.create_mirror("lan-south", "south")["token"])
    assert "never_seen" in run("mirror", "list")
    error = {"code": "internal", "detail": "the disk is odd"}
    body = {"epoch": "0" * 24, "status": {"version": "7.7.7", "lease_s": 60, "error": error}}
    mirror.call("POST", "/api/mirror/sync", json=body)
    said = run("mirror", "list")
    assert "failing" in said and "the disk is odd" in said and "7.7.7" in said
    assert "lan-south (failing)" in run("site", "list")
    found = {one["name"]: one for one in json.loads(run("mirror", "list", "--json"))}
    one = found["lan-south"]
    assert (one["health"], one["error"], one["lease_s"]) == ("failing", error, 60)
    assert one["unhealthy_since"] and one["hands_out_until"]


@pytest.mark.parametrize("lease", ["59s", "31d", "0", "soon", "-1h"])
def test_a_lease_has_its_bounds(tmp_path, capsys, lease):
    with pytest.raises(SystemExit) as done:
        main(["serve", "--data", str(tmp_path / "x"), "--insecure", f"--lease={lease}"])
    assert done.value.code in (1, 2)
    assert not (tmp_path / "x").exists() and "lease" in capsys.readouterr().err
