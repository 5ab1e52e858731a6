"""A rollout is stopped when somebody says so, whatever the database does; and stays so.

Real full disks, locks held by other processes, a PostgreSQL that is stopped, workers that are
killed.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from beacon_ota.orchestrator.core.rollout_records import load_state
from beacon_ota.orchestrator.core.service import FLUSH_S
from beacon_ota.orchestrator.rollout import advance as moves
from tests.orchestrator.postgres import cluster
from tests.orchestrator.world import (
    COMMAND,
    DEADLINE_S,
    Server,
    TestBeacon,
    beacons,
    environment,
    image,
    until,
    upload,
)

PLAN = {"preset": "all-at-once", "window": "00:00-24:00"}
NOW_S = 30.0  # what "at once" may take on a busy machine; a locked database alone takes as long
UNSTORED = 5


@contextmanager
def small_disk(folder: Path, size: str = "4m"):
    """Mount a file system of its own, small enough to fill."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave no byte of room."""
    file = folder / "ballast"
    with file.open("ab", buffering=0) as out:
        for size in (65536, 4096, 1):
            try:
                while True:
                    out.write(b"x" * size)
            except OSError:
                pass
    return file


def is_refused(server: Server) -> bool:
    """Write something; tell whether there was no room for it."""
    name = f"s{time.monotonic_ns()}"
    answer = requests.post(
        f"{server.url}/api/sites",
        json={"path": name},
        headers={"Authorization": f"Bearer {server.token}"},
        timeout=DEADLINE_S,
    )
    return answer.status_code == 503


LOCK = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
db.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
db.execute("ROLLBACK")
"""


@contextmanager
def locked(data: Path):
    """Have another process hold the database's lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOCK, str(data / "beacon-ota.db")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline()
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait(DEADLINE_S)
        process.stdout.close()


def started(server: Server, tmp: Path, count: int = 3) -> tuple[list[TestBeacon], str]:
    """Return beacons and a rollout to all of them."""
    admin = server.admin()
    fleet = beacons(server, count)
    firmware = upload(admin, "1.1.0", tmp, channel="stable")["firmware_id"]
    return fleet, admin.create_rollout(firmware, PLAN)["rollout_id"]


def cli(server: Server, tmp: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(COMMAND), *words],
        env=environment(tmp, server),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def post(server: Server, rollout: str, verb: str, token: str = "") -> requests.Response:
    return requests.post(
        f"{server.url}/api/rollouts/{rollout}/{verb}",
        json={"reason": "in a test"},
        headers={"Authorization": f"Bearer {token or server.token}"},
        timeout=DEADLINE_S,
    )


def health(server: Server) -> dict:
    return requests.get(f"{server.url}/health", timeout=DEADLINE_S).json()


def get(server: Server, path: str, token: str = "") -> requests.Response:
    headers = {"Authorization": f"Bearer {token or server.token}"}
    return requests.get(server.url + path, headers=headers, timeout=DEADLINE_S)


def test_a_full_disk_does_not_keep_a_rollout_going(tmp_path):
    with small_disk(tmp_path / "disk") as disk, Server(disk / "data") as server:
        fleet, rollout = started(server, tmp_path)
        offers = [beacon.offered() for beacon in fleet]
        assert fleet[0].download(offers[0]).status == 200
        ballast = fill(disk)
        until(lambda: fill(disk) and all(is_refused(server) for _ in range(3)))

        done = cli(server, tmp_path, "rollout", "halt", rollout, "--reason", "smoke")
        assert done.returncode == UNSTORED, (done.stdout, done.stderr)
        assert "halted" in done.stdout and "memory" in done.stderr
        for beacon, offer in zip(fleet, offers, strict=True):
            assert beacon.download(offer).status == 410
        assert fleet[0].report("rebooting", offers[0]).status == 410
        assert fleet[1].poll().status == 204
        assert health(server)["unstored_stops"] == [rollout]
        gauge = f'beacon_ota_rollout_stop_unstored{{rollout="{rollout}"}} 1.0'
        assert gauge in get(server, "/metrics").text
        assert server.admin().get_rollout(rollout)["stored"] is False
        said = post(server, rollout, "halt")  # another administrator, or the same again
        assert said.status_code == 202 and said.json()["survives_restart"] is True
        assert post(server, rollout, "resume").json()["code"] == "stop_unstored"

        # Killed before it was stored, and started again on the same full disk.
        server.kill()
        server.start()
        for beacon, offer in zip(fleet, offers, strict=True):
            beacon.connect(server.url)
            assert beacon.poll().status == 204
            assert beacon.download(offer).status == 410
        assert health(server)["unstored_stops"] == [rollout]

        ballast.unlink()
        until(lambda: health(server)["unstored_stops"] == [])
        found = server.admin().get_rollout(rollout)
        assert found["status"] == "halted" and found["stored"] is True
        last = found["transitions"][-1]
        assert (last["kind"], last["detail"]) == ("halted", "smoke")
        assert server.admin().verify_audit()["entries"]
        assert cli(server, tmp_path, "rollout", "resume", rollout, "--yes").returncode == 0
        assert fleet[1].offer() is not None
        # What was stored does not come back either: the note is empty again.
        assert server.stop() == 0
        server.start()
        fleet[2].connect(server.url)
        assert fleet[2].offer() is not None


def test_a_locked_database_does_not_keep_a_rollout_going(tmp_path):
    with Server(tmp_path / "data") as server:
        fleet, rollout = started(server, tmp_path)
        offers = [beacon.offered() for beacon in fleet[:2]]
        for beacon, offer in zip(fleet, offers, strict=False):
            assert beacon.download(offer).status == 200
        answers: list[int] = []
        with locked(server.data):
            # It waits for the database, and gets its turn after the halt.
            waiting = threading.Thread(
                target=lambda: answers.append(fleet[1].report("rebooting", offers[1]).status)
            )
            waiting.start()
            time.sleep(0.5)
            began = time.monotonic()
            said = post(server, rollout, "halt")
            assert time.monotonic() - began < NOW_S
            assert said.status_code == 202, said.text
            assert said.json()["status"] == "halted" and said.json()["survives_restart"] is True
            assert fleet[0].download(offers[0]).status == 410
            assert fleet[0].report("downloading", offers[0], progress=50).status == 410
            assert fleet[2].poll().status == 204
            assert post(server, rollout, "resume").status_code == 503
            assert post(server, rollout, "abort").status_code == 202
            assert server.admin().get_rollout(rollout)["status"] == "aborted"
        waiting.join(DEADLINE_S)
        assert answers == [410]
        until(lambda: health(server)["unstored_stops"] == [])
        kinds = [one["kind"] for one in server.admin().get_rollout(rollout)["transitions"]]
        assert kinds[-2:] == ["halted", "aborted"]
        assert "Traceback" not in server.log()


def test_a_download_under_way_is_broken_off(tmp_path):
    with Server(tmp_path / "data") as server:
        file = tmp_path / "large.bin"
        file.write_bytes(image("1.1.0", size=1_600_000))
        admin = server.admin()
        firmware = admin.upload_firmware(
            file, device_type="esp32c3", version="1.1.0", channel="stable"
        )
        (beacon,) = beacons(server, 1)
        rollout = admin.create_rollout(firmware["firmware_id"], PLAN)["rollout_id"]
        offer = beacon.offered()
        target = offer["download_url"]
        assert beacon.download(offer, {"Range": "bytes=0-9"}).status == 206
        with slow_reader(server.url) as reader, locked(server.data):
            signed = beacon.sign("GET", target)
            reader.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n".encode())
            reader.sendall(f"Authorization: {signed}\r\n\r\n".encode())
            got = len(reader.recv(4096))
            assert got
            assert post(server, rollout, "halt").status_code == 202
            while piece := received(reader):
                got += len(piece)
        assert got < file.stat().st_size, got


@contextmanager
def slow_reader(url: str):
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    reader.settimeout(DEADLINE_S)
    parts = urlsplit(url)
    reader.connect((parts.hostname, parts.port))
    with reader:
        yield reader


def received(reader: socket.socket) -> bytes:
    try:
        return reader.recv(65536)
    except ConnectionResetError:
        return b""


def test_a_pause_lets_go_on_what_was_begun(tmp_path):
    with Server(tmp_path / "data") as server:
        fleet, rollout = started(server, tmp_path, 3)
        offers = [beacon.offered() for beacon in fleet[:2]]
        assert fleet[0].download(offers[0]).status == 200
        with locked(server.data):
            assert post(server, rollout, "pause").status_code == 202
            assert fleet[0].download(offers[0]).status == 200
            assert fleet[1].download(offers[1]).status == 410
            assert fleet[2].poll().status == 204
        until(lambda: stored(server))
        assert fleet[0].report("rebooting", offers[0]).status == 200
        assert server.admin().get_rollout(rollout)["status"] == "paused"


def test_what_an_operator_may_not_do_he_may_not_do_without_a_database(tmp_path):
    with Server(tmp_path / "data", f"--database={cluster().create_database()}") as server:
        admin = server.admin()
        tokens = {
            role: admin.call("POST", "/api/tokens", json={"name": role, "role": role})
            for role in ("viewer", "operator")
        }
        gone = admin.call("POST", "/api/tokens", json={"name": "gone", "role": "operator"})
        admin.call("DELETE", f"/api/tokens/{gone['id']}")
        _fleet, rollout = started(server, tmp_path, 1)
        for role in ("viewer", "operator"):  # each is seen once, as after signing in
            assert get(server, "/api/tokens/me", tokens[role]["token"]).status_code == 200
        cluster().pg_ctl("-m", "immediate", "-w", "stop")
        try:
            assert post(server, rollout, "halt", tokens["viewer"]["token"]).status_code == 403
            for wrong in (gone["token"], "bota_12345678_" + "x" * 43):
                assert post(server, rollout, "halt", wrong).status_code == 503
            token = tokens["operator"]["token"]
            assert post(server, rollout, "advance", token).status_code == 503
            said = post(server, rollout, "halt", token)
            assert said.status_code == 202 and said.json()["by"] == "operator"
        finally:
            cluster().start()
        until(lambda: health(server).get("unstored_stops") == [])
        assert server.admin().get_rollout(rollout)["by"] == "operator"


def test_workers_stop_together_while_postgresql_is_away(tmp_path):
    with Server(
        tmp_path / "data", f"--database={cluster().create_database()}", "--workers=2"
    ) as server:
        fleet, rollout = started(server, tmp_path, 6)
        offers = [beacon.offered() for beacon in fleet]
        for beacon, offer in zip(fleet, offers, strict=True):
            assert beacon.download(offer).status == 200
        for _ in range(30):  # each worker has seen whose token this is; copies are seconds old
            server.admin().list_rollouts()
        time.sleep(FLUSH_S)
        cluster().pg_ctl("-m", "immediate", "-w", "stop")
        try:
            done = cli(server, tmp_path, "rollout", "halt", rollout, "--json")
            assert done.returncode == UNSTORED, (done.stdout, done.stderr)
            assert json.loads(done.stdout)["stored"] is False
            for beacon, offer in zip(fleet, offers, strict=True):  # at whichever worker
                for _ in range(3):
                    beacon.connect(server.url)
                    assert beacon.report("downloading", offer, progress=9).status == 410
            assert health(server)["unstored_stops"] == [rollout]
            # Killed: another takes its place, and knows.
            for pid in children(server.process.pid):
                os.kill(pid, 9)
        finally:
            cluster().start()
        until(lambda: stored(server))
        for beacon, offer in zip(fleet, offers, strict=True):
            beacon.connect(server.url)
            assert beacon.report("rebooting", offer).status in (409, 410)
        found = server.admin().get_rollout(rollout)
        assert found["status"] == "halted"
        assert [one["kind"] for one in found["transitions"]].count("halted") == 1


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def stored(server: Server) -> bool:
    try:
        return health(server).get("unstored_stops") == []
    except requests.RequestException:
        return False


def test_a_start_honours_what_was_stopped_while_postgresql_was_away(tmp_path):
    with Server(tmp_path / "data", f"--database={cluster().create_database()}") as server:
        fleet, rollout = started(server, tmp_path, 2)
        offer = fleet[0].offered()
        cluster().pg_ctl("-m", "immediate", "-w", "stop")
        try:
            assert post(server, rollout, "halt").json()["survives_restart"] is True
            server.kill()
        finally:
            cluster().start()
        server.options.append("--workers=3")  # as many as the next start likes
        server.start()
        for beacon in fleet:
            beacon.connect(server.url)
        assert fleet[0].download(offer).status in (409, 410)
        assert fleet[1].poll().status == 204
        until(lambda: stored(server))
        assert server.admin().get_rollout(rollout)["status"] == "halted"


def begun(local, tmp: Path, plan: dict | None = None) -> str:
    firmware = upload(local.admin(), "1.1.0", tmp, channel="stable")["firmware_id"]
    rollout = local.admin().create_rollout(firmware, plan or PLAN)["rollout_id"]
    local.step()
    return rollout


def test_it_holds_over_what_another_worker_commits_just_then(local, elsewhere, tmp_path):
    local.beacons(20)
    rollout = begun(local, tmp_path, {"preset": "canary", "window": "00:00-24:00"})
    entry = local.service.fleet.rollouts[rollout]
    made = moves.open_next_stage(
        entry.rollout,
        entry.state,
        local.engine.count_outcomes(entry, local.clock.at),
        local.clock.at,
        "somebody",
    )
    elsewhere.hold()
    assert post(local, rollout, "halt").status_code == 202
    state = entry.stored
    for change in made:
        state = moves.apply_transition(state, change)
    elsewhere.move(rollout, state)  # a stage, opened by the other one
    elsewhere.let_go()
    until(lambda: not local.service.stops.to_store())
    row = elsewhere.rollout(rollout)
    found = load_state(row["state"])
    assert row["status"] == "halted" and found.waves[0].stage == state.waves[0].stage == 1
    assert entry.state.status == entry.stored.status == "halted"
    assert [one["kind"] for one in elsewhere.transitions(rollout)].count("halted") == 1


def test_it_does_not_come_back_by_reading_everything_again(local, elsewhere, tmp_path):
    (beacon,) = local.beacons(1)
    rollout = begun(local, tmp_path)
    browser = signed_in(local)
    elsewhere.hold()
    assert post(local, rollout, "halt").status_code == 202

    async def read_again() -> str:
        local.service.reload_fleet()
        local.engine.reload_rollouts()
        return str(local.service.fleet.rollouts[rollout].state.status)

    assert local.call(read_again()) == "halted"
    assert beacon.offer() is None
    page = browser.get(f"{local.url}/rollouts/{rollout}", timeout=DEADLINE_S).text
    assert "In memory only" in page and "A restart knows it, too" in page
    elsewhere.let_go()
    until(lambda: not local.service.stops.to_store())
    page = browser.get(f"{local.url}/rollouts/{rollout}", timeout=DEADLINE_S).text
    assert "In memory only" not in page and "Halted" in page
    assert beacon.offer() is None


def signed_in(local) -> requests.Session:
    """Return a browser with a session."""
    browser = requests.Session()
    answer = browser.post(f"{local.url}/login", data={"token": local.token}, timeout=DEADLINE_S)
    assert answer.status_code == 200, answer.text
    return browser


def test_two_administrators_and_a_resume(local, elsewhere, tmp_path):
    local.beacons(1)
    rollout = begun(local, tmp_path)
    elsewhere.hold()
    answers: list[int] = []
    those = [
        threading.Thread(target=lambda: answers.append(post(local, rollout, "halt").status_code))
        for _ in range(2)
    ]
    for one in those:
        one.start()
    for one in those:
        one.join(DEADLINE_S)
    assert answers == [202, 202]
    refused = post(local, rollout, "resume")
    assert (refused.status_code, refused.json()["code"]) == (503, "stop_unstored")
    elsewhere.let_go()
    until(lambda: not local.service.stops.to_store())
    assert post(local, rollout, "resume").status_code == 200
    kinds = [one["kind"] for one in elsewhere.transitions(rollout)]
    assert kinds[-2:] == ["halted", "resumed"] and kinds.count("halted") == 1
    # What holds once does not hold for ever.
    assert local.service.fleet.rollouts[rollout].state.status == "active"


def test_a_gate_halts_although_nothing_can_be_recorded(local, elsewhere, tmp_path):
    fleet = local.beacons(4)
    rollout = begun(local, tmp_path)
    offers = [beacon.offered() for beacon in fleet]
    for beacon, offer in zip(fleet[:2], offers, strict=False):
        beacon.fail(offer)
    assert fleet[2].download(offers[2]).status == 200
    assert fleet[3].download(offers[3]).status == 200
    local.step()
    elsewhere.hold()
    third = fleet[2].report("failed", offers[2], stage="verify", code="checksum")
    assert third.status == 503
    stepping = threading.Thread(target=local.step)
    stepping.start()
    until(lambda: rollout in local.service.stops.current())
    assert fleet[3].download(offers[3]).status == 410
    elsewhere.let_go()
    stepping.join(DEADLINE_S)
    until(lambda: not local.service.stops.to_store())
    last = elsewhere.transitions(rollout)[-1]
    assert (last["kind"], last["reason"], last["actor"]) == (
        "halted",
        "failures_in_a_row",
        "engine",
    )


def test_what_halted_in_memory_counts_as_what_it_was_when_it_is_said_again(
    local, elsewhere, tmp_path
):
    """The halt is stored first; it does not make a failure of one that was called off."""
    fleet = local.beacons(4)
    rollout = begun(local, tmp_path)
    offers = [beacon.offered() for beacon in fleet]
    for beacon, offer in zip(fleet[:2], offers, strict=False):
        beacon.fail(offer)
    for beacon, offer in zip(fleet[2:], offers[2:], strict=True):
        assert beacon.download(offer).status == 200
    local.step()
    elsewhere.hold()
    said = fleet[2].report("failed", offers[2], stage="verify", code="checksum")
    assert said.status == 503
    stepping = threading.Thread(target=local.step)
    stepping.start()
    until(lambda: rollout in local.service.stops.current())
    elsewhere.let_go()
    stepping.join(DEADLINE_S)
    until(lambda: not local.service.stops.to_store())
    local.step()
    said = fleet[2].report("failed", offers[2], stage="verify", code="checksum")
    assert (said.status, said.json["recorded"]) == (200, "first")
    assert local.admin().get_rollout(rollout)["results"] == {"failed": 3, "stopped": 1}


def test_silence_halts_although_nothing_can_be_recorded(local, elsewhere, tmp_path):
    fleet = local.beacons(4)
    rollout = begun(local, tmp_path)
    for beacon in fleet[:3]:
        offer = beacon.offered()
        assert beacon.download(offer).status == 200
        assert beacon.report("rebooting", offer).status == 200
    offer = fleet[3].offered()
    local.clock.at += 31 * 60
    elsewhere.hold()

    def step() -> None:
        with suppress(Exception):  # the database's refusal, which the engine's loop logs
            local.step()

    stepping = threading.Thread(target=step)
    stepping.start()
    until(lambda: rollout in local.service.stops.current())
    assert fleet[3].download(offer).status == 410
    elsewhere.let_go()
    stepping.join(DEADLINE_S)
    until(lambda: not local.service.stops.to_store())
    assert elsewhere.rollout(rollout)["status"] == "halted"


def test_a_release_that_cannot_be_withdrawn_goes_to_nobody(local, elsewhere, tmp_path):
    (beacon,) = local.beacons(1)
    rollout = begun(local, tmp_path)
    offer = beacon.offered()
    elsewhere.hold()
    said = requests.post(
        f"{local.url}/api/firmwares/{offer['firmware_id']}/deprecate",
        headers={"Authorization": f"Bearer {local.token}"},
        timeout=DEADLINE_S,
    )
    assert said.status_code == 503 and "halted" in said.json()["detail"]
    assert beacon.download(offer).status == 410
    elsewhere.let_go()
    until(lambda: not local.service.stops.to_store())
    assert elsewhere.rollout(rollout)["status"] == "halted"


def test_what_a_restored_database_hands_out_stays_paused_when_all_is_read_again(local, tmp_path):
    (beacon,) = local.beacons(1)
    rollout = begun(local, tmp_path)

    async def restore() -> str:
        local.engine._hold_restored()
        local.service.reload_fleet()
        local.engine.reload_rollouts()
        return str(local.service.fleet.rollouts[rollout].state.status)

    assert local.call(restore()) == "paused"
    assert beacon.offer() is None
    until(lambda: not local.service.stops.to_store())
    assert local.admin().get_rollout(rollout)["reason"] == "restored"


def test_no_stage_opens_that_cannot_be_written(local, elsewhere, tmp_path):
    fleet = local.beacons(20)
    rollout = begun(local, tmp_path, {"preset": "canary", "window": "00:00-24:00"})
    entry = local.service.fleet.rollouts[rollout]
    for beacon in fleet:
        if (offer := beacon.offer()) is not None:
            beacon.update(offer)
    before = entry.state.waves[0].stage
    local.step()
    local.clock.at += 2 * 86400
    for beacon in fleet:
        beacon.poll()
    elsewhere.hold()

    def step() -> None:
        with suppress(Exception):
            local.step()

    stepping = threading.Thread(target=step)
    stepping.start()
    stepping.join(DEADLINE_S)
    assert entry.state.waves[0].stage == before and not local.service.stops.to_store()
    elsewhere.let_go()
    local.step()
    assert entry.state.waves[0].stage == before + 1


def test_a_gate_halts_while_postgresql_is_away(tmp_path):
    with Server(tmp_path / "data", f"--database={cluster().create_database()}") as server:
        fleet, rollout = started(server, tmp_path, 4)
        offers = [beacon.offered() for beacon in fleet]
        for beacon, offer in zip(fleet, offers, strict=True):
            assert beacon.download(offer).status == 200
        for beacon, offer in zip(fleet[:2], offers, strict=False):
            said = beacon.report("failed", offer, stage="verify", code="checksum")
            assert said.status == 200
        cluster().pg_ctl("-m", "immediate", "-w", "stop")
        try:
            said = fleet[2].report("failed", offers[2], stage="verify", code="checksum")
            assert said.status == 503
            until(lambda: health(server)["unstored_stops"] == [rollout])
            assert fleet[3].report("downloading", offers[3], progress=9).status == 410
        finally:
            cluster().start()
        until(lambda: stored(server))
        found = server.admin().get_rollout(rollout)
        assert (found["status"], found["reason"]) == ("halted", "failures_in_a_row")
        # And the beacon's own word is taken when it says it again.
        said = fleet[2].report("failed", offers[2], stage="verify", code="checksum")
        assert said.status == 200
