"""Two orchestrators on one database, and an administrator who halts through either of them.

Both decide about the same rollout all the time: both answer beacons, one leads and opens stages,
and whichever resumed a rollout opens the next stage at once. What has to hold: after a halt was
acknowledged nothing is offered, no ``rebooting`` is acknowledged, and the rollout makes no move
until somebody resumes it.
"""

import contextlib
import random
import secrets
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import create_engine, text

from beacon_ota.campaign.kills.server_process import ServerProcess, wait_until
from beacon_ota.campaign.kills.simulated_beacon import CALL_ERRORS, SimulatedBeacon
from beacon_ota.campaign.rig import builds
from beacon_ota.campaign.rig.postgres import PostgresCluster, find_programs
from beacon_ota.errors import BeaconOtaError, UsageError

BEACONS = 10
HALTS = 60  # of one case
OF_ONE_RELEASE = 5  # then another one is rolled out
HALT_MIN_S = 0.15  # seconds that a halt lasts at least
PATIENCE = 120.0
STAGES = 20
ROLLOUT = {
    "window": "00:00-24:00",
    "ladder": [{"share": (n + 1) / STAGES, "soak": "0s"} for n in range(STAGES)],
    "gate": {"min_sample": 1, "healthy_share": 0, "failure_share": 1, "in_a_row": 1000},
}
FORBIDDEN = ("offered", "rebooting")


class BeaconStep(NamedTuple):
    """A beacon's request that was answered."""

    begun: float  # seconds of the monotonic clock
    ended: float
    beacon: str
    word: str


class HaltInterval(NamedTuple):
    """The time in which a halt held: from its acknowledgement until somebody asked to resume."""

    since: float
    until: float


class PollingFleet:
    """Beacons in threads that turn to one orchestrator and the other in turn."""

    def __init__(self, sides: list[ServerProcess], chance: random.Random):
        self.servers = sides
        self.stopping = threading.Event()
        self.steps: list[BeaconStep] = []
        self.errors: list[str] = []
        self.beacons = [self._register_beacon(f"b{n:03}", chance) for n in range(BEACONS)]
        self._threads = [
            threading.Thread(target=self._run_beacon, args=(beacon,), daemon=True)
            for beacon in self.beacons
        ]
        for thread in self._threads:
            thread.start()

    def _register_beacon(self, name: str, chance: random.Random) -> SimulatedBeacon:
        key = secrets.token_bytes(32)
        self.servers[0].admin_client().create_beacon(name, builds.DEVICE, key=key.hex())
        return SimulatedBeacon(name, key, random.Random(chance.random()))

    def _run_beacon(self, beacon: SimulatedBeacon) -> None:
        turn = 0
        while not self.stopping.is_set():
            turn += 1
            beacon.url = self.servers[turn % len(self.servers)].url
            begun = time.monotonic()
            try:
                word = beacon.step()
            except CALL_ERRORS as error:
                self.errors.append(f"{beacon.id}: {type(error).__name__}: {error}")
                return
            self.steps.append(BeaconStep(begun, time.monotonic(), beacon.id, word))
            if word not in FORBIDDEN and word != "downloaded":
                time.sleep(0.01)

    def stop(self) -> None:
        """End the threads."""
        self.stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE)


def halt_repeatedly(
    folder: Path, chance: random.Random, count: int = HALTS
) -> tuple[str, list[str], Any]:
    """Two orchestrators, one database: a halt that was acknowledged holds at both."""
    found = find_programs()
    if found is None:
        return "skipped: no PostgreSQL here", [], {}
    with _start_servers(folder, found) as (sides, database):
        fleet = PollingFleet(sides, chance)
        held: list[HaltInterval] = []
        wrong: list[str] = []
        try:
            for number in range(-(-count // OF_ONE_RELEASE)):
                rollout = _roll_out(sides[number % 2], f"1.{number + 1}.0")
                for _ in range(min(OF_ONE_RELEASE, count - len(held))):
                    if _halt_and_resume(sides, rollout, chance, held, wrong):
                        break  # the rollout is over
                if not fleet.errors:
                    _wait_for_completion(sides, fleet, f"1.{number + 1}.0", rollout)
        finally:
            fleet.stop()
        wrong += [
            *fleet.errors,
            *find_forbidden_steps(fleet.steps, held),
            *_find_forbidden_moves(database),
        ]
        wrong += [] if held else ["nothing was ever halted"]
        try:
            sides[0].admin_client().verify_audit()
        except BeaconOtaError as error:
            wrong.append(f"audit log: {error}")
        facts = {"halts": len(held), "answers": len(fleet.steps)}
    return "halted", wrong, facts


@contextlib.contextmanager
def _start_servers(folder: Path, found: Path) -> Iterator[tuple[list[ServerProcess], str]]:
    """Start a database and two orchestrators on it."""
    with contextlib.ExitStack() as stack:
        cluster = PostgresCluster(found)
        stack.callback(cluster.stop)
        database = cluster.create_database()
        (folder / "images").mkdir()
        shared = {"database": database, "images": str(folder / "images")}
        token_file = folder / "token"
        sides = [
            stack.enter_context(ServerProcess(folder / name, token_file, **shared))
            for name in ("one", "two")
        ]
        yield sides, database


def _roll_out(side: ServerProcess, version: str) -> str:
    admin = side.admin_client()
    fields = {"device_type": builds.DEVICE, "version": version, "channel": "stable"}
    row = admin.upload_firmware(BytesIO(builds.build_release(version)), **fields)
    return admin.create_rollout(row["firmware_id"], ROLLOUT)["rollout_id"]


def _halt_and_resume(
    sides: list[ServerProcess],
    rollout: str,
    chance: random.Random,
    held: list[HaltInterval],
    wrong: list[str],
) -> bool:
    """Halt through one side while another administrator opens a stage through the other.

    Returns:
        Whether the rollout was over before.
    """
    time.sleep(chance.random() * chance.choice((0.3, 0.02)))
    one, other = chance.sample(sides, 2)
    opening = threading.Thread(target=_move_rollout, args=(other, rollout, "advance"), daemon=True)
    opening.start()
    time.sleep(chance.random() * 0.01)
    if _move_rollout(one, rollout, "halt"):
        return True
    since = time.monotonic()
    time.sleep(HALT_MIN_S)
    opening.join(PATIENCE)
    held.append(HaltInterval(since, time.monotonic()))
    if code := _move_rollout(chance.choice(sides), rollout, "resume"):
        wrong.append(f"a halt was not there to be resumed from: {code}")
    return False


def _move_rollout(side: ServerProcess, rollout: str, move: str) -> str:
    """Give an order; return the code with which it is refused, "" when it is taken.

    A stop that a busy database has not taken yet holds at its own side only: it is waited for.
    """
    admin = side.admin_client()
    try:
        done = admin.post_rollout_action(rollout, move, "in a campaign")
    except UsageError as error:
        return error.code
    if not done["stored"]:
        wait_until(lambda: admin.get_rollout(rollout)["stored"], PATIENCE, "the stop to be stored")
    return ""


def _wait_for_completion(
    sides: list[ServerProcess], fleet: PollingFleet, version: str, rollout: str
) -> None:
    wait_until(
        lambda: fleet.errors or all(b.version == version and not b.busy for b in fleet.beacons),
        PATIENCE,
        f"the fleet on {version}",
    )
    admin = sides[0].admin_client()
    wait_until(
        lambda: fleet.errors or admin.get_rollout(rollout)["status"] == "completed",
        PATIENCE,
        "the rollout to be completed",
    )


def find_forbidden_steps(steps: list[BeaconStep], held: list[HaltInterval]) -> list[str]:
    """Return what beacons were told while a halt held."""
    return [
        f"{step.beacon}: {step.word} {step.begun - halt.since:.3f} s after a halt was acknowledged"
        for halt in held
        for step in steps
        if step.word in FORBIDDEN and halt.since < step.begun and step.ended < halt.until
    ]


def _find_forbidden_moves(database: str) -> list[str]:
    """Return the moves that rollouts made after a halt, and before they were resumed."""
    engine = create_engine(database.replace("asyncpg", "psycopg"))
    query = "SELECT rollout_id, kind, actor, stage FROM transitions ORDER BY rollout_id, id"
    wrong = []
    try:
        with engine.connect() as conn:
            halted = ""
            for row in conn.execute(text(query)):
                if halted == row.rollout_id and row.kind != "resumed":
                    wrong.append(f"{row.kind} by {row.actor} after a halt (stage {row.stage})")
                halted = row.rollout_id if row.kind == "halted" else ""
    finally:
        engine.dispose()
    return wrong
