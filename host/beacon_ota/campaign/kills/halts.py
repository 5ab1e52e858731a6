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

from beacon_ota.campaign.kills.server_process import Served, until
from beacon_ota.campaign.kills.simulated_beacon import FAILS, Beacon
from beacon_ota.campaign.rig import builds
from beacon_ota.campaign.rig.postgres import Cluster, programs
from beacon_ota.errors import BeaconOtaError, UsageError

BEACONS = 10
HALTS = 60  # of one case
OF_ONE_RELEASE = 5  # then another one is rolled out
QUIET = 0.15  # seconds that a halt lasts at least
PATIENCE = 120.0
STAGES = 20
ROLLOUT = {
    "window": "00:00-24:00",
    "ladder": [{"share": (n + 1) / STAGES, "soak": "0s"} for n in range(STAGES)],
    "gate": {"min_sample": 1, "healthy_share": 0, "failure_share": 1, "in_a_row": 1000},
}
FORBIDDEN = ("offered", "rebooting")


class Step(NamedTuple):
    """A beacon's request that was answered."""

    begun: float  # seconds of the monotonic clock
    ended: float
    beacon: str
    word: str


class Halt(NamedTuple):
    """The time in which a halt held: from its acknowledgement until somebody asked to resume."""

    since: float
    until: float


class Fleet:
    """Beacons in threads that turn to one orchestrator and the other in turn."""

    def __init__(self, sides: list[Served], chance: random.Random):
        self.sides = sides
        self.over = threading.Event()
        self.steps: list[Step] = []
        self.trouble: list[str] = []
        self.beacons = [self._register(f"b{n:03}", chance) for n in range(BEACONS)]
        self._threads = [
            threading.Thread(target=self._live, args=(beacon,), daemon=True)
            for beacon in self.beacons
        ]
        for thread in self._threads:
            thread.start()

    def _register(self, name: str, chance: random.Random) -> Beacon:
        key = secrets.token_bytes(32)
        self.sides[0].admin().create_beacon(name, builds.DEVICE, key=key.hex())
        return Beacon(name, key, random.Random(chance.random()))

    def _live(self, beacon: Beacon) -> None:
        turn = 0
        while not self.over.is_set():
            turn += 1
            beacon.url = self.sides[turn % len(self.sides)].url
            begun = time.monotonic()
            try:
                word = beacon.step()
            except FAILS as error:
                self.trouble.append(f"{beacon.id}: {type(error).__name__}: {error}")
                return
            self.steps.append(Step(begun, time.monotonic(), beacon.id, word))
            if word not in FORBIDDEN and word != "downloaded":
                time.sleep(0.01)

    def stop(self) -> None:
        """End the threads."""
        self.over.set()
        for thread in self._threads:
            thread.join(PATIENCE)


def halts(folder: Path, chance: random.Random, count: int = HALTS) -> tuple[str, list[str], Any]:
    """Two orchestrators, one database: a halt that was acknowledged holds at both."""
    found = programs()
    if found is None:
        return "skipped: no PostgreSQL here", [], {}
    with _sides(folder, found) as (sides, database):
        fleet = Fleet(sides, chance)
        held: list[Halt] = []
        wrong: list[str] = []
        try:
            for number in range(-(-count // OF_ONE_RELEASE)):
                rollout = _roll_out(sides[number % 2], f"1.{number + 1}.0")
                for _ in range(min(OF_ONE_RELEASE, count - len(held))):
                    if _halted(sides, rollout, chance, held, wrong):
                        break  # the rollout is over
                if not fleet.trouble:
                    _complete(sides, fleet, f"1.{number + 1}.0", rollout)
        finally:
            fleet.stop()
        wrong += [*fleet.trouble, *broken(fleet.steps, held), *_moved(database)]
        wrong += [] if held else ["nothing was ever halted"]
        try:
            sides[0].admin().verify_audit()
        except BeaconOtaError as error:
            wrong.append(f"audit log: {error}")
        facts = {"halts": len(held), "answers": len(fleet.steps)}
    return "halted", wrong, facts


@contextlib.contextmanager
def _sides(folder: Path, found: Path) -> Iterator[tuple[list[Served], str]]:
    """Start a database and two orchestrators on it."""
    with contextlib.ExitStack() as stack:
        cluster = Cluster(found)
        stack.callback(cluster.stop)
        database = cluster.database()
        (folder / "images").mkdir()
        shared = {"database": database, "images": str(folder / "images")}
        token_file = folder / "token"
        sides = [
            stack.enter_context(Served(folder / name, token_file, **shared))
            for name in ("one", "two")
        ]
        yield sides, database


def _roll_out(side: Served, version: str) -> str:
    admin = side.admin()
    fields = {"device_type": builds.DEVICE, "version": version, "channel": "stable"}
    row = admin.upload_firmware(BytesIO(builds.build(version)), **fields)
    return admin.create_rollout(row["firmware_id"], ROLLOUT)["rollout_id"]


def _halted(
    sides: list[Served], rollout: str, chance: random.Random, held: list[Halt], wrong: list[str]
) -> bool:
    """Halt through one side while another administrator opens a stage through the other.

    Returns:
        Whether the rollout was over before.
    """
    time.sleep(chance.random() * chance.choice((0.3, 0.02)))
    one, other = chance.sample(sides, 2)
    opening = threading.Thread(target=_order, args=(other, rollout, "advance"), daemon=True)
    opening.start()
    time.sleep(chance.random() * 0.01)
    if _order(one, rollout, "halt"):
        return True
    since = time.monotonic()
    time.sleep(QUIET)
    opening.join(PATIENCE)
    held.append(Halt(since, time.monotonic()))
    if code := _order(chance.choice(sides), rollout, "resume"):
        wrong.append(f"a halt was not there to be resumed from: {code}")
    return False


def _order(side: Served, rollout: str, move: str) -> str:
    """Give an order; return the code with which it is refused, "" when it is taken.

    A stop that a busy database has not taken yet holds at its own side only: it is waited for.
    """
    admin = side.admin()
    try:
        done = admin.post_rollout_action(rollout, move, "in a campaign")
    except UsageError as error:
        return error.code
    if not done["stored"]:
        until(lambda: admin.get_rollout(rollout)["stored"], PATIENCE, "the stop to be stored")
    return ""


def _complete(sides: list[Served], fleet: Fleet, version: str, rollout: str) -> None:
    until(
        lambda: fleet.trouble or all(b.version == version and not b.busy for b in fleet.beacons),
        PATIENCE,
        f"the fleet on {version}",
    )
    admin = sides[0].admin()
    until(
        lambda: fleet.trouble or admin.get_rollout(rollout)["status"] == "completed",
        PATIENCE,
        "the rollout to be completed",
    )


def broken(steps: list[Step], held: list[Halt]) -> list[str]:
    """Return what beacons were told while a halt held."""
    return [
        f"{step.beacon}: {step.word} {step.begun - halt.since:.3f} s after a halt was acknowledged"
        for halt in held
        for step in steps
        if step.word in FORBIDDEN and halt.since < step.begun and step.ended < halt.until
    ]


def _moved(database: str) -> list[str]:
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
