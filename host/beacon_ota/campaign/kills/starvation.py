"""Cases of starvation: full disk, locked database, damaged image, slow and idle clients."""

import contextlib
import hashlib
import random
import resource
import secrets
import select
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from beacon_ota.campaign.kills.consistency import find_incomplete, find_leftovers
from beacon_ota.campaign.kills.fleet import PATIENCE, PAUSING_STEPS, roll_out_once, upload_release
from beacon_ota.campaign.kills.server_process import ServerProcess, wait_until
from beacon_ota.campaign.kills.simulated_beacon import CALL_ERRORS, SimulatedBeacon
from beacon_ota.campaign.rig import builds
from beacon_ota.errors import BeaconOtaError

CONNECTIONS = 10_000


SPARE = 500  # open files that a process needs besides connections


DISK = 6 * 1024 * 1024  # bytes of the disk that is filled


CaseResult = tuple[str, list[str], dict[str, Any]]  # class of the outcome, what is wrong, numbers


def fill_disk(folder: Path, chance: random.Random) -> CaseResult:
    """Fill the disk: named refusals, no partial data, normal operation afterwards."""
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(_mount_small_disk(folder / "disk"))
        if disk is None:
            return "skipped: no small disk can be mounted", [], {}
        server = stack.enter_context(ServerProcess(disk))
        admin = server.admin_client()
        beacon = _register_one(server, chance)
        first = upload_release(admin, builds.build_release("1.1.0"), "1.1.0")
        roll_out_once(admin, first["firmware_id"])
        wrong = _install_version(beacon, "1.1.0", 30)
        ballast = disk / "ballast"
        _fill_file(ballast)
        code = _refusal_code(lambda: upload_release(admin, builds.build_release("1.2.0"), "1.2.0"))
        if code != "storage":
            wrong.append(f"an upload without room was answered with {code}")
        beacon.add_journal_entry("campaign", "full")
        said = _try_step(beacon)
        if admin.get_beacon(beacon.id)["beacon_id"] != beacon.id:
            wrong.append("reading failed, too")
        wrong += find_incomplete(server)
        ballast.unlink()
        second = wait_until(
            lambda: _result_or_none(
                lambda: upload_release(admin, builds.build_release("1.2.0"), "1.2.0")
            ),
            PATIENCE,
            "upload",
        )
        roll_out_once(admin, second["firmware_id"])
        wrong += [
            *_install_version(beacon, "1.2.0", 60),
            *find_incomplete(server),
            *find_leftovers(server),
        ]
        return "refused, then on", wrong, {"upload": code, "report": said}


def lock_database(folder: Path, chance: random.Random) -> CaseResult:
    """Lock the database from another process: writers wait or are refused, then go on."""
    with ServerProcess(folder) as server:
        admin = server.admin_client()
        beacon = _register_one(server, chance)
        release = upload_release(admin, builds.build_release("1.1.0"), "1.1.0")
        roll_out_once(admin, release["firmware_id"])
        lock = sqlite3.connect(server.data / "beacon-ota.db", timeout=30, isolation_level=None)
        lock.execute("begin exclusive")
        done: list[str] = []
        thread = threading.Thread(target=lambda: done.extend(_install_version(beacon, "1.1.0", 90)))
        thread.start()
        time.sleep(1)
        wrong = [] if beacon.version != "1.1.0" else ["written past a lock"]
        if _refusal_code(lambda: admin.get_beacon(beacon.id)) is not None:
            wrong.append("reading failed, too")
        lock.execute("rollback")
        lock.close()
        thread.join(PATIENCE)
        return "waited", [*wrong, *done, *find_incomplete(server), *find_leftovers(server)], {}


def damage_image(folder: Path, chance: random.Random) -> CaseResult:
    """Damage an image on the disk: it is found by its hash, withdrawn, and uploaded again."""
    with ServerProcess(folder) as server:
        image = builds.build_release("1.1.0")
        row = upload_release(server.admin_client(), image, "1.1.0")
        firmware = row["firmware_id"]
        beacon = _register_one(server, chance)
        roll_out_once(server.admin_client(), firmware)
        server.kill()
        path = server.data / "blobs" / hashlib.sha256(image).hexdigest()
        data = bytearray(path.read_bytes())
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        server.start()
        admin = server.admin_client()
        wrong = []
        wait_until(
            lambda: admin.find_firmware(firmware)["damaged_at"],
            PATIENCE,
            "the damage to be noticed",
        )
        if not any("damaged" in event["kind"] for event in admin.list_latest_events(100)):
            wrong.append("no event reports the damage")
        beacon.url = server.url
        for _ in range(5):
            if beacon.step() in ("offered", "downloaded"):
                wrong.append("a damaged image is still handed out")
        upload_release(admin, image, "1.1.0")
        if admin.find_firmware(firmware)["damaged_at"]:
            wrong.append("still withdrawn after the same bytes were uploaded again")
        return (
            "withdrawn",
            [*wrong, *_install_version(beacon, "1.1.0", 60), *find_incomplete(server)],
            {},
        )


def stall_clients(folder: Path, chance: random.Random) -> CaseResult:
    """Open two hundred clients that send slowly; a normal client is still served."""
    with ServerProcess(folder) as server:
        admin = server.admin_client()
        beacon = _register_one(server, chance)
        row = upload_release(admin, builds.build_release("1.1.0"), "1.1.0")
        roll_out_once(admin, row["firmware_id"])
        before = server.memory_bytes
        dawdlers = []
        for number in range(200):
            sock = _open_connection(server)
            sock.sendall(b"POST /api/x HTTP/1.1\r\nHost: x\r\n"[: chance.randrange(1, 32)])
            dawdlers.append(sock)
            if number % 4 == 0:
                with contextlib.suppress(OSError):
                    sock.sendall(b"x: y\r\n")
        wrong = _install_version(beacon, "1.1.0", 60)
        took = _time_polls(beacon, 100)
        grown = server.memory_bytes - before
        for sock in dawdlers:
            sock.close()
        if grown > 64 * 1024 * 1024:
            wrong.append(f"{grown} bytes more memory")
        facts = {"poll p99 ms": round(1000 * took[98], 1), "KB more": grown // 1024}
        return "served", [*wrong, *find_incomplete(server)], facts


def hold_idle_connections(
    folder: Path, chance: random.Random, count: int = CONNECTIONS
) -> CaseResult:
    """Open ten thousand silent connections; the server drops them in the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(count, hard - SPARE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, count + SPARE)), hard))
    with ServerProcess(folder) as server:
        beacon = _register_one(server, chance)
        before = server.memory_bytes
        quiet: list[socket.socket] = []
        try:
            while len(quiet) < count:
                quiet.append(_open_connection(server))
            grown = server.memory_bytes - before
            took = _time_polls(beacon, 100)
            wrong = [] if grown < count * 16 * 1024 else [f"{grown // count} bytes for each"]
            wait_until(lambda: _all_closed(quiet), PATIENCE, "silent connections to be dropped")
        finally:
            for sock in quiet:
                sock.close()
        facts = {
            "connections": count,
            "bytes for each": grown // count,
            "poll p99 ms": round(1000 * took[98], 1),
        }
        return "held, then dropped", [*wrong, *find_incomplete(server)], facts


def _register_one(server: ServerProcess, chance: random.Random) -> SimulatedBeacon:
    key = secrets.token_bytes(32)
    server.admin_client().create_beacon("b000", builds.DEVICE, key=key.hex())
    beacon = SimulatedBeacon("b000", key, chance)
    beacon.url = server.url
    return beacon


def _install_version(beacon: SimulatedBeacon, version: str, timeout: float) -> list[str]:
    """Step a beacon until it runs a version; return the violation at the timeout (seconds)."""
    end = time.monotonic() + timeout
    while beacon.version != version or beacon.busy:
        if time.monotonic() > end:
            return [f"{beacon.id} did not come to {version} in {timeout:g} s"]
        try:
            word = beacon.step()
        except CALL_ERRORS:
            word = "broken"
        if word in PAUSING_STEPS:
            time.sleep(0.05)
    return []


def _try_step(beacon: SimulatedBeacon) -> str:
    try:
        return beacon.step()
    except CALL_ERRORS as error:
        return type(error).__name__


def _time_polls(beacon: SimulatedBeacon, count: int) -> list[float]:
    took = []
    for _ in range(count):
        begun = time.perf_counter()
        beacon.step()
        took.append(time.perf_counter() - begun)
    return sorted(took)


def _refusal_code(order: Callable[[], Any]) -> str | None:
    """Return the error code of a refused request, None when it is accepted."""
    try:
        order()
    except BeaconOtaError as error:
        return error.code
    return None


def _result_or_none(order: Callable[[], Any]) -> Any:
    try:
        return order()
    except BeaconOtaError:
        return None


def _open_connection(server: ServerProcess) -> socket.socket:
    parts = urlsplit(server.url)
    return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=30)


def _all_closed(quiet: list[socket.socket]) -> bool:
    """Return whether the server has closed all connections."""
    poller = select.poll()
    for sock in quiet:
        poller.register(sock, select.POLLIN)
    return len(poller.poll(0)) == len(quiet)


def _fill_file(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\xff" * size)


@contextlib.contextmanager
def _mount_small_disk(folder: Path) -> Iterator[Path | None]:
    """Mount a small disk; None where that is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "beacon-ota", str(folder)]
    try:
        made = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        made = False
    if not made:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
