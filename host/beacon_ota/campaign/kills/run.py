"""The orchestrator under fire: a real process, clients that keep account of what they were told.

``kills:3:25`` is the third part, of 25 kills. Whatever happens: what was acknowledged is there,
nothing is there twice, nothing is half there, and the rollout goes on by itself.
"""

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
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from beacon_ota.campaign.kills.halts import halts
from beacon_ota.campaign.kills.server_process import Served, until
from beacon_ota.campaign.kills.simulated_beacon import FAILS, Beacon
from beacon_ota.campaign.rig import builds
from beacon_ota.campaign.rig.bench import scratch
from beacon_ota.campaign.runner import Options, Outcome, Plan
from beacon_ota.client import Client
from beacon_ota.errors import BeaconOtaError, ReachError, UsageError

BEACONS = 12
PART = 25  # kills of one case
PATIENCE = 120.0  # real seconds for what has to come by itself
CONNECTIONS = 10_000
SPARE = 500  # files that a process needs besides connections
DISK = 6 * 1024 * 1024  # bytes of the disk that gets full
ROLLOUT = {
    "preset": "all-at-once",
    "window": "00:00-24:00",
    "retry": {"limit": 30, "pauses": ["1s"]},
    "gate": {"healthy_share": 0, "failure_share": 1, "in_a_row": 1000},
}
PAUSE = ("idle", "broken", "refused", "called off")  # steps that lead no further
Said = tuple[str, list[str], dict[str, Any]]  # class of the outcome, what is wrong, numbers


def plan(folder: Path, options: Options) -> Plan:
    """List the cases."""
    parts = range(0, options.kills, PART)
    kills = [f"kills:{at // PART}:{min(PART, options.kills - at)}" for at in parts]
    cases = [*kills, *(name for name in CASES if name != "kills")][:: options.every]
    return Plan(cases, {"kills": options.kills, "beacons at each": BEACONS})


def case(name: str, folder: Path, options: Options) -> Outcome:
    """Run one case."""
    kind, *rest = name.split(":")
    if kind not in CASES:
        raise UsageError("case_name", "no such case", found=name, expected=", ".join(CASES))
    chance = random.Random(f"{options.seed} {name}")
    with scratch() as where:
        word, wrong, facts = CASES[kind](where, chance, *map(int, rest))
    return Outcome(name, kind, word, wrong, facts=facts)


# -- a fleet and its administrator


class Fleet:
    """Beacons in threads, and an administrator who brings out one release after the other."""

    def __init__(self, served: Served, chance: random.Random, *, count: int = BEACONS):
        self.served, self.chance = served, chance
        self.up = threading.Event()
        self.over = threading.Event()
        self.steps = 0  # that were answered
        self.releases: dict[str, str] = {}  # firmware id -> checksum, as acknowledged
        self.rollouts: set[str] = set()
        self.target = ""
        self.trouble: list[str] = []
        self.beacons = [self._register(number) for number in range(count)]
        self._admin = threading.Thread(target=self._bring_out, daemon=True)
        self._threads = [
            *(threading.Thread(target=self._live, args=(b,), daemon=True) for b in self.beacons),
            self._admin,
        ]

    def _register(self, number: int) -> Beacon:
        key = secrets.token_bytes(32)
        name = f"b{number:03}"
        self.served.admin().create_beacon(name, builds.DEVICE, key=key.hex())
        chance = random.Random(self.chance.random())
        return Beacon(name, key, chance, lossy=0.05, failing=0.1)

    def start(self) -> None:
        self.up.set()
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Let everybody come to an end: all beacons on the newest release, all words said."""
        self.over.set()
        self.up.set()
        self._admin.join(PATIENCE)
        until(
            lambda: self.trouble or all(self._there(beacon) for beacon in self.beacons),
            PATIENCE,
            f"the fleet on {self.target}",
        )
        for thread in self._threads:
            thread.join(PATIENCE)

    def _there(self, beacon: Beacon) -> bool:
        return beacon.version == self.target and not beacon.busy

    def _live(self, beacon: Beacon) -> None:
        while not (self.over.is_set() and not self._admin.is_alive() and self._there(beacon)):
            self.up.wait()
            beacon.url = self.served.url
            try:
                word = beacon.step()
            except FAILS:
                word = "broken"
            except Exception as error:
                self.trouble.append(f"{beacon.id}: {type(error).__name__}: {error}")
                return
            if word in PAUSE:
                time.sleep(0.05)
            else:
                self.steps += 1

    def _bring_out(self) -> None:
        number = 0
        while not self.over.is_set():
            number += 1
            version = f"1.{number}.0"
            image = builds.build(version)
            row = self._insist(lambda c, v=version, i=image: _upload(c, i, v))
            if row is None:
                return
            self.releases[row["firmware_id"]] = row["checksum"]
            made = self._insist(lambda c, f=row["firmware_id"]: _roll_out(c, f))
            if made is None:
                return
            self.rollouts.add(made["rollout_id"])
            self.target = version
            while not self.over.is_set() and not all(map(self._there, self.beacons)):
                time.sleep(0.02)

    def _insist(self, order: Callable[[Client], Any]) -> Any:
        """Give an order until it is acknowledged; None when it is refused for good."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            self.up.wait()
            try:
                return order(self.served.admin())
            except ReachError:
                time.sleep(0.05)
            except BeaconOtaError as error:
                self.trouble.append(f"administrator: {error.code}: {error}")
                return None
        self.trouble.append("administrator: nobody answers")
        return None

    def wrong(self) -> list[str]:
        """Compare what was acknowledged with what is there."""
        return [*self.trouble, *promises(self.served, self), *whole(self.served)]


def _upload(client: Client, image: bytes, version: str) -> dict[str, Any]:
    fields = {"device_type": builds.DEVICE, "version": version, "channel": "stable"}
    return client.upload_firmware(BytesIO(image), **fields)


def _roll_out(client: Client, firmware_id: str) -> dict[str, Any]:
    for one in client.list_rollouts():
        if one["firmware_id"] == firmware_id:
            return one  # the answer got lost
    return client.create_rollout(firmware_id, ROLLOUT)


def promises(served: Served, fleet: Fleet) -> list[str]:
    """Return what was acknowledged and is missing, and what is there twice."""
    wrong = []
    ends = {row[0]: row[1:] for row in served.rows("select id, beacon_id, result from attempts")}
    entries = served.rows("select beacon_id, seq from journal")
    for beacon in fleet.beacons:
        for attempt, word in list(beacon.ledger.ends.items()):
            if ends.get(attempt) != (beacon.id, word):
                wrong.append(f"{beacon.id}: {attempt} was {word}, is {ends.get(attempt)}")
        kept = {seq for name, seq in entries if name == beacon.id}
        if missing := set(beacon.ledger.entries) - kept:
            wrong.append(f"{beacon.id}: journal entries {sorted(missing)} are missing")
    if len(entries) != len(set(entries)):
        wrong.append("a journal entry is there twice")
    for name, rollout, count in served.rows(
        "select beacon_id, rollout_id, count(*) from attempts where result = 'success'"
        " group by beacon_id, rollout_id having count(*) > 1"
    ):
        wrong.append(f"{name}: {count} successes in {rollout}")
    made = [row[0] for row in served.rows("select firmware_id from rollouts")]
    if len(made) != len(set(made)):
        wrong.append("a release has two rollouts")
    known = {row[0] for row in served.rows("select id from rollouts")}
    if missing := set(fleet.rollouts) - known:
        wrong.append(f"rollouts {missing} are missing")
    stored = dict(served.rows("select id, checksum from firmwares"))
    for firmware, checksum in list(fleet.releases.items()):
        if stored.get(firmware) != checksum:
            wrong.append(f"release {firmware} is {stored.get(firmware)}")
    return wrong


def whole(served: Served) -> list[str]:
    """Return what is half there: files without a row, rows without their bytes, a broken chain.

    A row comes after its file: so rows are read first, and files of uploads that go on are not
    held against anybody.
    """
    wrong = []
    for (digest,) in served.rows("select distinct blob from firmwares"):
        path = served.data / "blobs" / digest
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            wrong.append(f"image {digest} is not whole")
    try:
        served.admin().verify_audit()
    except BeaconOtaError as error:
        wrong.append(f"audit log: {error}")
    return wrong


def tidy(served: Served) -> list[str]:
    """Return what is there that nobody refers to; only while nothing is uploaded."""
    known = {row[0] for row in served.rows("select blob from firmwares")}
    there = {path.name for path in (served.data / "blobs").iterdir()}
    wrong = [f"file {name} without a release" for name in there - known]
    return wrong + [f"left over: {path.name}" for path in (served.data / "incoming").iterdir()]


# -- the cases


def kills(folder: Path, chance: random.Random, part: int = 0, count: int = PART) -> Said:
    """SIGKILL at random moments, while releases are uploaded, rolled out and installed."""
    wrong: list[str] = []
    with Served(folder) as served:
        fleet = Fleet(served, chance)
        fleet.start()
        for _ in range(count):
            _some_steps(fleet, chance.randrange(1, 40))
            time.sleep(chance.random() * 0.03)
            fleet.up.clear()
            served.kill()
            promised = {b.id: dict(b.ledger.ends) for b in fleet.beacons}
            served.start()
            wrong += _kept(served, promised)
            fleet.up.set()
        fleet.finish()
        wrong += fleet.wrong()
        until(lambda: _completed(served), PATIENCE, "the last rollout to be completed")
        served.stop()
        served.start()
        wrong += [*promises(served, fleet), *whole(served), *tidy(served)]
        ends = sum(len(beacon.ledger.ends) for beacon in fleet.beacons)
        facts = {"kills": count, "releases": len(fleet.releases), "acknowledged ends": ends}
    return f"{count} kills", wrong, facts


def _some_steps(fleet: Fleet, count: int) -> None:
    """Wait for so many answers, or long enough."""
    goal, end = fleet.steps + count, time.monotonic() + 10
    while fleet.steps < goal and time.monotonic() < end and not fleet.trouble:
        time.sleep(0.002)


def _kept(served: Served, promised: dict[str, dict[str, str]]) -> list[str]:
    ends = dict(served.rows("select id, result from attempts"))
    return [
        f"{name}: {attempt} was {word}, is {ends.get(attempt)} after a kill"
        for name, words in promised.items()
        for attempt, word in words.items()
        if ends.get(attempt) != word
    ]


def _completed(served: Served) -> bool:
    rows = served.rows("select status from rollouts order by created_at desc limit 1")
    return rows == [("completed",)]


def full(folder: Path, chance: random.Random) -> Said:
    """No room left on the disk: refusals with a name, nothing half stored, on again afterwards."""
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(_disk(folder / "disk"))
        if disk is None:
            return "skipped: no small disk can be mounted", [], {}
        served = stack.enter_context(Served(disk))
        admin = served.admin()
        beacon = _one(served, chance)
        first = _upload(admin, builds.build("1.1.0"), "1.1.0")
        _roll_out(admin, first["firmware_id"])
        wrong = _walk(beacon, "1.1.0", 30)
        ballast = disk / "ballast"
        _fill(ballast)
        code = _refused(lambda: _upload(admin, builds.build("1.2.0"), "1.2.0"))
        if code != "storage":
            wrong.append(f"an upload without room was answered with {code}")
        beacon.note("campaign", "full")
        said = _attempted(beacon)
        if admin.get_beacon(beacon.id)["beacon_id"] != beacon.id:
            wrong.append("reading failed, too")
        wrong += whole(served)
        ballast.unlink()
        second = until(
            lambda: _given(lambda: _upload(admin, builds.build("1.2.0"), "1.2.0")),
            PATIENCE,
            "upload",
        )
        _roll_out(admin, second["firmware_id"])
        wrong += [*_walk(beacon, "1.2.0", 60), *whole(served), *tidy(served)]
        return "refused, then on", wrong, {"upload": code, "report": said}


def locked(folder: Path, chance: random.Random) -> Said:
    """Another process holds the database: writers wait or are refused, and it goes on."""
    with Served(folder) as served:
        admin = served.admin()
        beacon = _one(served, chance)
        release = _upload(admin, builds.build("1.1.0"), "1.1.0")
        _roll_out(admin, release["firmware_id"])
        lock = sqlite3.connect(served.data / "beacon-ota.db", timeout=30, isolation_level=None)
        lock.execute("begin exclusive")
        done: list[str] = []
        thread = threading.Thread(target=lambda: done.extend(_walk(beacon, "1.1.0", 90)))
        thread.start()
        time.sleep(1)
        wrong = [] if beacon.version != "1.1.0" else ["written past a lock"]
        if _refused(lambda: admin.get_beacon(beacon.id)) is not None:
            wrong.append("reading failed, too")
        lock.execute("rollback")
        lock.close()
        thread.join(PATIENCE)
        return "waited", [*wrong, *done, *whole(served), *tidy(served)], {}


def damaged(folder: Path, chance: random.Random) -> Said:
    """An image changes on the disk: found by its hash, withdrawn, told; then uploaded again."""
    with Served(folder) as served:
        image = builds.build("1.1.0")
        row = _upload(served.admin(), image, "1.1.0")
        firmware = row["firmware_id"]
        beacon = _one(served, chance)
        _roll_out(served.admin(), firmware)
        served.kill()
        path = served.data / "blobs" / hashlib.sha256(image).hexdigest()
        data = bytearray(path.read_bytes())
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        served.start()
        admin = served.admin()
        wrong = []
        until(
            lambda: admin.find_firmware(firmware)["damaged_at"],
            PATIENCE,
            "the damage to be noticed",
        )
        if not any("damaged" in event["kind"] for event in admin.list_latest_events(100)):
            wrong.append("nobody was told")
        beacon.url = served.url
        for _ in range(5):
            if beacon.step() in ("offered", "downloaded"):
                wrong.append("a damaged image is still handed out")
        _upload(admin, image, "1.1.0")
        if admin.find_firmware(firmware)["damaged_at"]:
            wrong.append("still withdrawn after the same bytes were uploaded again")
        return "withdrawn", [*wrong, *_walk(beacon, "1.1.0", 60), *whole(served)], {}


def slow(folder: Path, chance: random.Random) -> Said:
    """Two hundred clients that dawdle over requests and answers; a good one is served."""
    with Served(folder) as served:
        admin = served.admin()
        beacon = _one(served, chance)
        row = _upload(admin, builds.build("1.1.0"), "1.1.0")
        _roll_out(admin, row["firmware_id"])
        before = served.rss
        dawdlers = []
        for number in range(200):
            sock = _connect(served)
            sock.sendall(b"POST /api/x HTTP/1.1\r\nHost: x\r\n"[: chance.randrange(1, 32)])
            dawdlers.append(sock)
            if number % 4 == 0:
                with contextlib.suppress(OSError):
                    sock.sendall(b"x: y\r\n")
        wrong = _walk(beacon, "1.1.0", 60)
        took = _polls(beacon, 100)
        grown = served.rss - before
        for sock in dawdlers:
            sock.close()
        if grown > 64 * 1024 * 1024:
            wrong.append(f"{grown} bytes more memory")
        facts = {"poll p99 ms": round(1000 * took[98], 1), "KB more": grown // 1024}
        return "served", [*wrong, *whole(served)], facts


def idle(folder: Path, chance: random.Random, count: int = CONNECTIONS) -> Said:
    """Ten thousand connections that say nothing; they are dropped in the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(count, hard - SPARE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, count + SPARE)), hard))
    with Served(folder) as served:
        beacon = _one(served, chance)
        before = served.rss
        quiet: list[socket.socket] = []
        try:
            while len(quiet) < count:
                quiet.append(_connect(served))
            grown = served.rss - before
            took = _polls(beacon, 100)
            wrong = [] if grown < count * 16 * 1024 else [f"{grown // count} bytes for each"]
            until(lambda: _gone(quiet), PATIENCE, "silent connections to be dropped")
        finally:
            for sock in quiet:
                sock.close()
        facts = {
            "connections": count,
            "bytes for each": grown // count,
            "poll p99 ms": round(1000 * took[98], 1),
        }
        return "held, then dropped", [*wrong, *whole(served)], facts


CASES: dict[str, Callable[..., Said]] = {
    "kills": kills,
    "halts": halts,
    "full": full,
    "locked": locked,
    "damaged": damaged,
    "slow": slow,
    "idle": idle,
}


# -- what they share


def _one(served: Served, chance: random.Random) -> Beacon:
    key = secrets.token_bytes(32)
    served.admin().create_beacon("b000", builds.DEVICE, key=key.hex())
    beacon = Beacon("b000", key, chance)
    beacon.url = served.url
    return beacon


def _walk(beacon: Beacon, version: str, timeout: float) -> list[str]:
    """Let a beacon come to a release."""
    end = time.monotonic() + timeout
    while beacon.version != version or beacon.busy:
        if time.monotonic() > end:
            return [f"{beacon.id} did not come to {version} in {timeout:g} s"]
        try:
            word = beacon.step()
        except FAILS:
            word = "broken"
        if word in PAUSE:
            time.sleep(0.05)
    return []


def _attempted(beacon: Beacon) -> str:
    try:
        return beacon.step()
    except FAILS as error:
        return type(error).__name__


def _polls(beacon: Beacon, count: int) -> list[float]:
    took = []
    for _ in range(count):
        begun = time.perf_counter()
        beacon.step()
        took.append(time.perf_counter() - begun)
    return sorted(took)


def _refused(order: Callable[[], Any]) -> str | None:
    """Return the code with which an order is refused, None when it is not."""
    try:
        order()
    except BeaconOtaError as error:
        return error.code
    return None


def _given(order: Callable[[], Any]) -> Any:
    try:
        return order()
    except BeaconOtaError:
        return None


def _connect(served: Served) -> socket.socket:
    parts = urlsplit(served.url)
    return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=30)


def _gone(quiet: list[socket.socket]) -> bool:
    """Has the other side closed all of them?"""
    poller = select.poll()
    for sock in quiet:
        poller.register(sock, select.POLLIN)
    return len(poller.poll(0)) == len(quiet)


def _fill(path: Path) -> None:
    """Take all room there is."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\xff" * size)


@contextlib.contextmanager
def _disk(folder: Path) -> Iterator[Path | None]:
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
