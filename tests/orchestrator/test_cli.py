"""The command line against a server process, as somebody at a terminal uses it."""

import json
import os
import signal
import subprocess
import threading
import time

import pytest

from beacon_ota.cli import main
from beacon_ota.console import output
from tests.orchestrator.world import COMMAND, beacons, environment, image, until


@pytest.fixture
def run(server, tmp_path, monkeypatch, capsys):
    """Run a command against the server; returns its output, checks its exit code."""
    for name, value in environment(tmp_path, server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(output.console, "_width", 200)
    monkeypatch.setattr(output.error_console, "_width", 200)

    def go(*args: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as done:
            main(list(args))
        said = capsys.readouterr()
        assert (done.value.code or 0) == code, (args, said.out, said.err)
        return said.out if code == 0 else said.err

    return go


def test_a_release_from_upload_to_rollout(server, run, tmp_path):
    file = tmp_path / "release.bin"
    file.write_bytes(image("1.1.0"))
    done = json.loads(run("release", "upload", str(file), "-m", "better", "--json"))
    assert done["version"] == "1.1.0" and done["device_type"] == "esp32c3"
    assert "1.1.0" in run("release", "list") and "testing" in run("release", "list")
    run("release", "promote", "1.1.0")
    shown = json.loads(run("release", "show", "esp32c3/1.1.0", "--json"))
    assert shown["state"] == "stable" and shown["description"] == "better"
    fleet = beacons(server, 5)
    for beacon in fleet:
        beacon.poll()
    planned = run("rollout", "plan", "1.1.0", "--preset", "all-at-once")
    assert "ends" in planned and "5 beacons fetch" in planned
    assert shown["cost"]["beacons"] == 0 and "what it costs a beacon" in planned
    named = run("rollout", "plan", "1.1.0", "--preset", "all-at-once", "--beacons")
    assert all(beacon.id in named for beacon in fleet)
    shown = json.loads(run("rollout", "plan", "1.1.0", "--preset", "all-at-once", "--json"))
    assert f"--seed {shown['seed']}" in run("rollout", "plan", "1.1.0", "--seed", shown["seed"])
    plan = tmp_path / "plan.toml"
    plan.write_text('preset = "all-at-once"\nwindow = "00:00-24:00"\n')
    ordered = run("rollout", "create", "1.1.0", "-f", str(plan), "--seed", shown["seed"], "--json")
    rollout = json.loads(ordered)["rollout_id"]
    assert rollout == shown["seed"]
    for beacon in fleet[:4]:
        beacon.update(beacon.offered())
    assert "active" in run("rollout", "list")
    run("rollout", "pause", rollout[:8], "--reason", "lunch")
    assert "paused" in run("rollout", "show", rollout)
    run("rollout", "resume", rollout[:8])
    fleet[4].update(fleet[4].offered())
    assert "completed" in run("rollout", "show", rollout[:8], "--watch", "--every", "0.2")
    rows = json.loads(run("rollout", "attempts", rollout, "--json"))
    assert {row["result"] for row in rows} == {"success"} and len(rows) == 5
    assert "not_confirmed" in run("release", "deprecate", "1.1.0", code=2)
    run("release", "deprecate", "1.1.0", "--yes", "--reason", "old")
    kinds = [
        json.loads(line)["kind"] for line in run("events", "--latest", "50", "--json").splitlines()
    ]
    assert "rollout.completed" in kinds and "firmware.deprecated" in kinds
    assert "lunch" in run("audit", "list", "--action", "rollout")


def test_refusals_name_themselves(run, tmp_path):
    file = tmp_path / "bad.bin"
    file.write_bytes(b"\x7fELF" + bytes(5000))
    error = run(
        "release", "upload", str(file), "--version", "1.0.0", "--device-type", "esp32c3", code=1
    )
    assert "image_magic" in error and "found" in error
    assert "firmware_unknown" in run("release", "show", "9.9.9", code=1)
    assert "rollout_unknown" in run("rollout", "show", "abc", code=2)
    assert "beacon_unknown" in run("beacon", "show", "nobody", code=1)
    plan = tmp_path / "plan.toml"
    plan.write_text("preset =")
    assert "plan_file" in run("rollout", "create", "1", "-f", str(plan), code=1)
    env_less = run("beacon", "list", "--url", "http://127.0.0.1:1", code=3)
    assert "unreachable" in env_less
    assert "token_wrong" in run("beacon", "list", "--token", "bota_x", code=4)


def test_beacons_and_sites(server, run):
    run("site", "add", "hq", "--tz", "Europe/Berlin", "--name", "Head quarters")
    run("site", "add", "hq/a")
    run("site", "change", "hq/a", "--window", "01:00-02:00")
    assert "Europe/Berlin" in run("site", "list")
    made = json.loads(run("beacon", "add", "cli-1", "--site", "hq/a", "--tag", "x", "--json"))
    assert len(made["key"]) == 64
    assert "cli-1" in run("beacon", "list", "--site", "hq")
    run("beacon", "change", "cli-1", "--channel", "beta", "--no-tags")
    shown = json.loads(run("beacon", "show", "cli-1", "--json"))
    assert shown["channel"] == "beta" and shown["tags"] == [] and shown["site"] == "hq/a"
    run("beacon", "quarantine", "cli-1", "--reason", "dropped")
    assert "dropped" in run("beacon", "show", "cli-1")
    assert json.loads(run("beacon", "list", "--quarantined", "--json"))[0]["beacon_id"] == "cli-1"
    run("beacon", "unquarantine", "cli-1")
    run("beacon", "rekey", "cli-1")
    assert "not_confirmed" in run("beacon", "remove", "cli-1", code=2)
    run("beacon", "remove", "cli-1", "--yes")
    run("site", "remove", "hq/a", "-y")


def test_boards_that_are_not_what_was_typed(server, run, tmp_path):
    small, large = beacons(server, 2, "board-")
    small.poll()
    large.poll()
    large.device_type = "esp32c3-8mb"
    assert large.poll().headers["x-reason"] == "board"
    said = run("beacon", "show", large.id)
    assert "it says that it is esp32c3-8mb" in said and f"beacon retype {large.id}" in said
    assert large.id in run("beacon", "list", "--questioned")
    file = tmp_path / "release.bin"
    for board in ("esp32c3", "esp32c3-8mb"):
        file.write_bytes(image("1.4.0", device_type=board))
        run("release", "upload", str(file), "--stable")
    assert "firmware_ambiguous" in run("rollout", "create", "1.4.0", code=1)
    # One beacon is doubted: it is in no count of those who wait, and it is said.
    ordered = run("rollout", "plan", "esp32c3/1.4.0")
    assert "1 beacons that say they are another board" in ordered
    assert "beacon list --questioned" in ordered
    run("beacon", "retype", large.id, "--questioned", code=2)
    assert "not_confirmed" in run("beacon", "retype", "--questioned", code=2)
    done = json.loads(run("beacon", "retype", "--questioned", "--yes", "--json"))
    assert [(one["beacon_id"], one["device_type"]) for one in done] == [(large.id, "esp32c3-8mb")]
    assert large.id in run("audit", "list", "--action", "beacon.retyped")
    # It has become one of another board: not covered, and what covers it is said.
    said = run("rollout", "create", "esp32c3/1.4.0", "--preset", "all-at-once")
    assert "not covered: 1 beacons of another board, esp32c3-8mb" in said
    assert "rollout create esp32c3-8mb/1.4.0 --preset all-at-once" in said
    theirs = json.loads(run("rollout", "create", "esp32c3-8mb/1.4.0", "--json"))
    assert theirs["not_covered"]["boards"][0]["device_type"] == "esp32c3"
    [mine] = [
        one
        for one in json.loads(run("rollout", "list", "--json"))
        if (one["device_type"], one["version"]) == ("esp32c3", "1.4.0")
    ]
    assert f"rollout show {theirs['rollout_id']}" in run("rollout", "show", mine["rollout_id"])
    assert "esp32c3" in run("beacon", "retype", large.id, "--type", "esp32c3")
    assert "request_invalid" in run("beacon", "retype", large.id, "--type", "NO", code=1)
    for one in (small, large):
        run("beacon", "remove", one.id, "--yes")


def test_a_beacon_that_is_refused_is_listed(server, run):
    (beacon,) = beacons(server, 1, "refused-")
    for _ in range(2):
        assert beacon.call("GET", "/firmwares/latest/esp32c3?version=odd").status == 422
    assert "refused" in run("beacon", "list", "--refused")
    said = run("beacon", "show", beacon.id)
    assert "refused 2 times since its last poll that was answered: poll_query" in said
    beacon.key = bytes(32)
    beacon.call("GET", "/firmwares/latest/esp32c3?version=1.0.0", check=False)
    assert "requests in its name since it was heard, the last bad_mac" in run(
        "beacon", "show", beacon.id
    )
    run("beacon", "remove", beacon.id, "--yes")


def test_tokens_online_and_offline(server, run):
    token = run("token", "new", "ci", "--role", "operator", "--days", "1").strip()
    assert json.loads(run("beacon", "list", "--json", "--token", token)) is not None
    assert "role_too_low" in run("token", "list", "--token", token, code=4)
    listed = {one["name"]: one for one in json.loads(run("token", "list", "--json"))}
    run("token", "revoke", listed["ci"]["id"], "--yes")
    assert "token_wrong" in run("beacon", "list", "--token", token, code=4)
    data = f"--data={server.data}"
    token = run("token", "new", "rescue", "--role", "admin", data).strip()
    assert "rescue" in run("token", "list", "--token", token)  # the server knows it at once
    listed = {one["name"]: one for one in json.loads(run("token", "list", "--json", data))}
    run("token", "revoke", listed["rescue"]["id"], "-y", data)
    assert "token_wrong" in run("token", "list", "--token", token, code=4)


def test_the_audit_log_online_and_offline(server, run, tmp_path):
    head = json.loads(run("audit", "verify", "--json"))["head"]
    data = f"--data={server.data}"
    assert "whole" in run("audit", "verify", data, "--head", head)
    assert "audit_truncated" in run("audit", "verify", "--head", "0" * 63 + "1", code=1)
    assert json.loads(run("audit", "list", "--limit", "3", data, "--json"))
    assert "data_missing" in run("audit", "verify", f"--data={tmp_path}", code=3)


def test_events_live(server, run, tmp_path):
    out: list[str] = []
    process = subprocess.Popen(
        [str(COMMAND), "events", "--kind", "beacon.", "--count", "2", "--json"],
        env=environment(tmp_path, server),
        stdout=subprocess.PIPE,
        text=True,
    )
    reader = threading.Thread(target=lambda: out.extend(process.stdout or []))
    reader.start()
    admin = server.admin()
    number = 0
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        admin.create_beacon(f"ev-{os.getpid()}-{number}", "esp32c3")
        number += 1
        time.sleep(0.1)
    reader.join(60)
    assert process.wait(60) == 0
    assert [json.loads(line)["kind"] for line in out] == ["beacon.created"] * 2


def test_lists_can_be_watched(server, run, tmp_path):
    beacons(server, 1, "watch-a")
    process = subprocess.Popen(
        [str(COMMAND), "beacon", "list", "--search", "watch-", "--watch", "--every", "0.2"],
        env={**environment(tmp_path, server), "FORCE_COLOR": "1", "TERM": "xterm"},
        stdout=subprocess.PIPE,
    )
    shown: list[bytes] = []
    reader = threading.Thread(target=lambda: shown.extend(process.stdout or []))
    reader.start()
    until(lambda: b"watch-a0000" in b"".join(shown), deadline_s=180)
    beacons(server, 1, "watch-b")
    until(lambda: b"watch-b0000" in b"".join(shown), deadline_s=180)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    reader.join(60)


def test_names_are_completed_from_the_server(server, tmp_path):
    beacons(server, 2, "tab")
    line = "beacon-ota beacon show tab"
    asked = {
        "_BEACON_OTA_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(line.count(" ")),
    }
    env = {**environment(tmp_path, server), **asked}
    told = subprocess.run([COMMAND], env=env, capture_output=True, text=True, timeout=60).stdout
    assert told.split() == ["tab0000", "tab0001"]
