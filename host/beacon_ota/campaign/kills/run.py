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

from beacon_ota.campaign.kills.halts import halt_repeatedly
from beacon_ota.campaign.kills.server_process import ServerProcess, wait_until
from beacon_ota.campaign.kills.simulated_beacon import CALL_ERRORS, SimulatedBeacon
from beacon_ota.campaign.rig import builds
from beacon_ota.campaign.rig.beacon_rig import scratch_folder
from beacon_ota.campaign.runner import CampaignOptions, CaseOutcome, CasePlan
from beacon_ota.client import Client
from beacon_ota.errors import BeaconOtaError, ReachError, UsageError

BEACONS = 12
KILLS_PER_CASE = 25  # kills of one case
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
PAUSING_STEPS = ("idle", "broken", "refused", "called off")  # steps that lead no further
CaseResult = tuple[str, list[str], dict[str, Any]]  # class of the outcome, what is wrong, numbers


def plan_cases(folder: Path, options: CampaignOptions) -> CasePlan:
    """List the cases."""
    parts = range(0, options.kills, KILLS_PER_CASE)
    kills = [
        f"kills:{at // KILLS_PER_CASE}:{min(KILLS_PER_CASE, options.kills - at)}" for at in parts
    ]
    cases = [*kills, *(name for name in CASES if name != "kills")][:: options.every]
    return CasePlan(cases, {"kills": options.kills, "beacons at each": BEACONS})


def run_case(name: str, folder: Path, options: CampaignOptions) -> CaseOutcome:
    """Run one case."""
    kind, *rest = name.split(":")
    if kind not in CASES:
        raise UsageError("case_name", "no such case", found=name, expected=", ".join(CASES))
    chance = random.Random(f"{options.seed} {name}")
    with scratch_folder() as where:
        word, wrong, facts = CASES[kind](where, chance, *map(int, rest))
    return CaseOutcome(name, kind, word, wrong, facts=facts)


# -- a fleet and its administrator


class UpdatingFleet:
    """Beacons in threads, and an administrator who brings out one release after the other."""

    def __init__(self, served: ServerProcess, chance: random.Random, *, count: int = BEACONS):
        self.served, self.chance = served, chance
        self.server_up = threading.Event()
        self.stopping = threading.Event()
        self.steps = 0  # that were answered
        self.releases: dict[str, str] = {}  # firmware id -> checksum, as acknowledged
        self.rollouts: set[str] = set()
        self.target = ""
        self.errors: list[str] = []
        self.beacons = [self._register_beacon(number) for number in range(count)]
        self._admin = threading.Thread(target=self._publish_releases, daemon=True)
        self._threads = [
            *(
                threading.Thread(target=self._run_beacon, args=(b,), daemon=True)
                for b in self.beacons
            ),
            self._admin,
        ]

    def _register_beacon(self, number: int) -> SimulatedBeacon:
        key = secrets.token_bytes(32)
        name = f"b{number:03}"
        self.served.admin_client().create_beacon(name, builds.DEVICE, key=key.hex())
        chance = random.Random(self.chance.random())
        return SimulatedBeacon(name, key, chance, lossy=0.05, failing=0.1)

    def start(self) -> None:
        self.server_up.set()
        for thread in self._threads:
            thread.start()

    def wait_until_done(self) -> None:
        """Let everybody come to an end: all beacons on the newest release, all words said."""
        self.stopping.set()
        self.server_up.set()
        self._admin.join(PATIENCE)
        wait_until(
            lambda: self.errors or all(self._is_up_to_date(beacon) for beacon in self.beacons),
            PATIENCE,
            f"the fleet on {self.target}",
        )
        for thread in self._threads:
            thread.join(PATIENCE)

    def _is_up_to_date(self, beacon: SimulatedBeacon) -> bool:
        return beacon.version == self.target and not beacon.busy

    def _run_beacon(self, beacon: SimulatedBeacon) -> None:
        while not (
            self.stopping.is_set() and not self._admin.is_alive() and self._is_up_to_date(beacon)
        ):
            self.server_up.wait()
            beacon.url = self.served.url
            try:
                word = beacon.step()
            except CALL_ERRORS:
                word = "broken"
            except Exception as error:
                self.errors.append(f"{beacon.id}: {type(error).__name__}: {error}")
                return
            if word in PAUSING_STEPS:
                time.sleep(0.05)
            else:
                self.steps += 1

    def _publish_releases(self) -> None:
        number = 0
        while not self.stopping.is_set():
            number += 1
            version = f"1.{number}.0"
            image = builds.build_release(version)
            row = self._repeat_until_acknowledged(
                lambda c, v=version, i=image: upload_release(c, i, v)
            )
            if row is None:
                return
            self.releases[row["firmware_id"]] = row["checksum"]
            made = self._repeat_until_acknowledged(
                lambda c, f=row["firmware_id"]: roll_out_once(c, f)
            )
            if made is None:
                return
            self.rollouts.add(made["rollout_id"])
            self.target = version
            while not self.stopping.is_set() and not all(map(self._is_up_to_date, self.beacons)):
                time.sleep(0.02)

    def _repeat_until_acknowledged(self, order: Callable[[Client], Any]) -> Any:
        """Give an order until it is acknowledged; None when it is refused for good."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            self.server_up.wait()
            try:
                return order(self.served.admin_client())
            except ReachError:
                time.sleep(0.05)
            except BeaconOtaError as error:
                self.errors.append(f"administrator: {error.code}: {error}")
                return None
        self.errors.append("administrator: nobody answers")
        return None

    def find_violations(self) -> list[str]:
        """Compare what was acknowledged with what is there."""
        return [*self.errors, *find_lost_promises(self.served, self), *find_incomplete(self.served)]


def upload_release(client: Client, image: bytes, version: str) -> dict[str, Any]:
    fields = {"device_type": builds.DEVICE, "version": version, "channel": "stable"}
    return client.upload_firmware(BytesIO(image), **fields)


def roll_out_once(client: Client, firmware_id: str) -> dict[str, Any]:
    for one in client.list_rollouts():
        if one["firmware_id"] == firmware_id:
            return one  # the answer got lost
    return client.create_rollout(firmware_id, ROLLOUT)


def find_lost_promises(served: ServerProcess, fleet: UpdatingFleet) -> list[str]:
    """Return what was acknowledged and is missing, and what is there twice."""
    wrong = []
    ends = {
        row[0]: row[1:] for row in served.query_rows("select id, beacon_id, result from attempts")
    }
    entries = served.query_rows("select beacon_id, seq from journal")
    for beacon in fleet.beacons:
        for attempt, word in list(beacon.acknowledged.ends.items()):
            if ends.get(attempt) != (beacon.id, word):
                wrong.append(f"{beacon.id}: {attempt} was {word}, is {ends.get(attempt)}")
        kept = {seq for name, seq in entries if name == beacon.id}
        if missing := set(beacon.acknowledged.entries) - kept:
            wrong.append(f"{beacon.id}: journal entries {sorted(missing)} are missing")
    if len(entries) != len(set(entries)):
        wrong.append("a journal entry is there twice")
    for name, rollout, count in served.query_rows(
        "select beacon_id, rollout_id, count(*) from attempts where result = 'success'"
        " group by beacon_id, rollout_id having count(*) > 1"
    ):
        wrong.append(f"{name}: {count} successes in {rollout}")
    made = [row[0] for row in served.query_rows("select firmware_id from rollouts")]
    if len(made) != len(set(made)):
        wrong.append("a release has two rollouts")
    known = {row[0] for row in served.query_rows("select id from rollouts")}
    if missing := set(fleet.rollouts) - known:
        wrong.append(f"rollouts {missing} are missing")
    stored = dict(served.query_rows("select id, checksum from firmwares"))
    for firmware, checksum in list(fleet.releases.items()):
        if stored.get(firmware) != checksum:
            wrong.append(f"release {firmware} is {stored.get(firmware)}")
    return wrong


def find_incomplete(served: ServerProcess) -> list[str]:
    """Return what is half there: files without a row, rows without their bytes, a broken chain.

    A row comes after its file: so rows are read first, and files of uploads that go on are not
    held against anybody.
    """
    wrong = []
    for (digest,) in served.query_rows("select distinct blob from firmwares"):
        path = served.data / "blobs" / digest
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            wrong.append(f"image {digest} is not whole")
    try:
        served.admin_client().verify_audit()
    except BeaconOtaError as error:
        wrong.append(f"audit log: {error}")
    return wrong


def find_leftovers(served: ServerProcess) -> list[str]:
    """Return what is there that nobody refers to; only while nothing is uploaded."""
    known = {row[0] for row in served.query_rows("select blob from firmwares")}
    there = {path.name for path in (served.data / "blobs").iterdir()}
    wrong = [f"file {name} without a release" for name in there - known]
    return wrong + [f"left over: {path.name}" for path in (served.data / "incoming").iterdir()]


# -- the cases


def kill_repeatedly(
    folder: Path, chance: random.Random, part: int = 0, count: int = KILLS_PER_CASE
) -> CaseResult:
    """SIGKILL at random moments, while releases are uploaded, rolled out and installed."""
    wrong: list[str] = []
    with ServerProcess(folder) as served:
        fleet = UpdatingFleet(served, chance)
        fleet.start()
        for _ in range(count):
            _wait_for_steps(fleet, chance.randrange(1, 40))
            time.sleep(chance.random() * 0.03)
            fleet.server_up.clear()
            served.kill()
            promised = {b.id: dict(b.acknowledged.ends) for b in fleet.beacons}
            served.start()
            wrong += _find_forgotten(served, promised)
            fleet.server_up.set()
        fleet.wait_until_done()
        wrong += fleet.find_violations()
        wait_until(
            lambda: _last_rollout_completed(served), PATIENCE, "the last rollout to be completed"
        )
        served.stop()
        served.start()
        wrong += [
            *find_lost_promises(served, fleet),
            *find_incomplete(served),
            *find_leftovers(served),
        ]
        ends = sum(len(beacon.acknowledged.ends) for beacon in fleet.beacons)
        facts = {"kills": count, "releases": len(fleet.releases), "acknowledged ends": ends}
    return f"{count} kills", wrong, facts


def _wait_for_steps(fleet: UpdatingFleet, count: int) -> None:
    """Wait for so many answers, or long enough."""
    goal, end = fleet.steps + count, time.monotonic() + 10
    while fleet.steps < goal and time.monotonic() < end and not fleet.errors:
        time.sleep(0.002)


def _find_forgotten(served: ServerProcess, promised: dict[str, dict[str, str]]) -> list[str]:
    ends = dict(served.query_rows("select id, result from attempts"))
    return [
        f"{name}: {attempt} was {word}, is {ends.get(attempt)} after a kill"
        for name, words in promised.items()
        for attempt, word in words.items()
        if ends.get(attempt) != word
    ]


def _last_rollout_completed(served: ServerProcess) -> bool:
    rows = served.query_rows("select status from rollouts order by created_at desc limit 1")
    return rows == [("completed",)]


def fill_disk(folder: Path, chance: random.Random) -> CaseResult:
    """No room left on the disk: refusals with a name, nothing half stored, on again afterwards."""
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(_mount_small_disk(folder / "disk"))
        if disk is None:
            return "skipped: no small disk can be mounted", [], {}
        served = stack.enter_context(ServerProcess(disk))
        admin = served.admin_client()
        beacon = _register_one(served, chance)
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
        wrong += find_incomplete(served)
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
            *find_incomplete(served),
            *find_leftovers(served),
        ]
        return "refused, then on", wrong, {"upload": code, "report": said}


def lock_database(folder: Path, chance: random.Random) -> CaseResult:
    """Another process holds the database: writers wait or are refused, and it goes on."""
    with ServerProcess(folder) as served:
        admin = served.admin_client()
        beacon = _register_one(served, chance)
        release = upload_release(admin, builds.build_release("1.1.0"), "1.1.0")
        roll_out_once(admin, release["firmware_id"])
        lock = sqlite3.connect(served.data / "beacon-ota.db", timeout=30, isolation_level=None)
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
        return "waited", [*wrong, *done, *find_incomplete(served), *find_leftovers(served)], {}


def damage_image(folder: Path, chance: random.Random) -> CaseResult:
    """An image changes on the disk: found by its hash, withdrawn, told; then uploaded again."""
    with ServerProcess(folder) as served:
        image = builds.build_release("1.1.0")
        row = upload_release(served.admin_client(), image, "1.1.0")
        firmware = row["firmware_id"]
        beacon = _register_one(served, chance)
        roll_out_once(served.admin_client(), firmware)
        served.kill()
        path = served.data / "blobs" / hashlib.sha256(image).hexdigest()
        data = bytearray(path.read_bytes())
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        served.start()
        admin = served.admin_client()
        wrong = []
        wait_until(
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
        upload_release(admin, image, "1.1.0")
        if admin.find_firmware(firmware)["damaged_at"]:
            wrong.append("still withdrawn after the same bytes were uploaded again")
        return (
            "withdrawn",
            [*wrong, *_install_version(beacon, "1.1.0", 60), *find_incomplete(served)],
            {},
        )


def stall_clients(folder: Path, chance: random.Random) -> CaseResult:
    """Two hundred clients that dawdle over requests and answers; a good one is served."""
    with ServerProcess(folder) as served:
        admin = served.admin_client()
        beacon = _register_one(served, chance)
        row = upload_release(admin, builds.build_release("1.1.0"), "1.1.0")
        roll_out_once(admin, row["firmware_id"])
        before = served.memory_bytes
        dawdlers = []
        for number in range(200):
            sock = _open_connection(served)
            sock.sendall(b"POST /api/x HTTP/1.1\r\nHost: x\r\n"[: chance.randrange(1, 32)])
            dawdlers.append(sock)
            if number % 4 == 0:
                with contextlib.suppress(OSError):
                    sock.sendall(b"x: y\r\n")
        wrong = _install_version(beacon, "1.1.0", 60)
        took = _time_polls(beacon, 100)
        grown = served.memory_bytes - before
        for sock in dawdlers:
            sock.close()
        if grown > 64 * 1024 * 1024:
            wrong.append(f"{grown} bytes more memory")
        facts = {"poll p99 ms": round(1000 * took[98], 1), "KB more": grown // 1024}
        return "served", [*wrong, *find_incomplete(served)], facts


def hold_idle_connections(
    folder: Path, chance: random.Random, count: int = CONNECTIONS
) -> CaseResult:
    """Ten thousand connections that say nothing; they are dropped in the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(count, hard - SPARE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, count + SPARE)), hard))
    with ServerProcess(folder) as served:
        beacon = _register_one(served, chance)
        before = served.memory_bytes
        quiet: list[socket.socket] = []
        try:
            while len(quiet) < count:
                quiet.append(_open_connection(served))
            grown = served.memory_bytes - before
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
        return "held, then dropped", [*wrong, *find_incomplete(served)], facts


CASES: dict[str, Callable[..., CaseResult]] = {
    "kills": kill_repeatedly,
    "halts": halt_repeatedly,
    "full": fill_disk,
    "locked": lock_database,
    "damaged": damage_image,
    "slow": stall_clients,
    "idle": hold_idle_connections,
}


# -- what they share


def _register_one(served: ServerProcess, chance: random.Random) -> SimulatedBeacon:
    key = secrets.token_bytes(32)
    served.admin_client().create_beacon("b000", builds.DEVICE, key=key.hex())
    beacon = SimulatedBeacon("b000", key, chance)
    beacon.url = served.url
    return beacon


def _install_version(beacon: SimulatedBeacon, version: str, timeout: float) -> list[str]:
    """Let a beacon come to a release."""
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
    """Return the code with which an order is refused, None when it is not."""
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


def _open_connection(served: ServerProcess) -> socket.socket:
    parts = urlsplit(served.url)
    return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=30)


def _all_closed(quiet: list[socket.socket]) -> bool:
    """Has the other side closed all of them?"""
    poller = select.poll()
    for sock in quiet:
        poller.register(sock, select.POLLIN)
    return len(poller.poll(0)) == len(quiet)


def _fill_file(path: Path) -> None:
    """Take all room there is."""
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
