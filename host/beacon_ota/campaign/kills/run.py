"""Kills the orchestrator process repeatedly, while clients record its acknowledgements.

The case ``kills:3:25`` is the third part, of 25 kills. After every kill each acknowledged change is
in the database, no change is there twice or incomplete, and the rollout goes on by itself.
"""

import random
import time
from collections.abc import Callable
from pathlib import Path

from beacon_ota.campaign.kills.consistency import (
    find_incomplete,
    find_leftovers,
    find_lost_promises,
)
from beacon_ota.campaign.kills.fleet import BEACONS, PATIENCE, UpdatingFleet
from beacon_ota.campaign.kills.halts import halt_repeatedly
from beacon_ota.campaign.kills.server_process import ServerProcess, wait_until
from beacon_ota.campaign.kills.starvation import (
    CaseResult,
    damage_image,
    fill_disk,
    hold_idle_connections,
    lock_database,
    stall_clients,
)
from beacon_ota.campaign.rig.beacon_rig import scratch_folder
from beacon_ota.campaign.runner import CampaignOptions, CaseOutcome, CasePlan
from beacon_ota.errors import UsageError

KILLS_PER_CASE = 25  # kills of one case


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


def kill_repeatedly(
    folder: Path, chance: random.Random, part: int = 0, count: int = KILLS_PER_CASE
) -> CaseResult:
    """SIGKILL at random moments, while releases are uploaded, rolled out and installed."""
    wrong: list[str] = []
    with ServerProcess(folder) as server:
        fleet = UpdatingFleet(server, chance)
        fleet.start()
        for _ in range(count):
            _wait_for_steps(fleet, chance.randrange(1, 40))
            time.sleep(chance.random() * 0.03)
            fleet.server_up.clear()
            server.kill()
            promised = {b.id: dict(b.acknowledged.ends) for b in fleet.beacons}
            server.start()
            wrong += _find_forgotten(server, promised)
            fleet.server_up.set()
        fleet.wait_until_done()
        wrong += fleet.find_violations()
        wait_until(
            lambda: _last_rollout_completed(server), PATIENCE, "the last rollout to be completed"
        )
        server.stop()
        server.start()
        wrong += [
            *find_lost_promises(server, fleet.beacons, fleet.rollouts, fleet.releases),
            *find_incomplete(server),
            *find_leftovers(server),
        ]
        ends = sum(len(beacon.acknowledged.ends) for beacon in fleet.beacons)
        facts = {"kills": count, "releases": len(fleet.releases), "acknowledged ends": ends}
    return f"{count} kills", wrong, facts


def _wait_for_steps(fleet: UpdatingFleet, count: int) -> None:
    """Wait for ``count`` more answers, at most 10 s."""
    goal, end = fleet.steps + count, time.monotonic() + 10
    while fleet.steps < goal and time.monotonic() < end and not fleet.errors:
        time.sleep(0.002)


def _find_forgotten(server: ServerProcess, promised: dict[str, dict[str, str]]) -> list[str]:
    ends = dict(server.query_rows("select id, result from attempts"))
    return [
        f"{name}: {attempt} was {word}, is {ends.get(attempt)} after a kill"
        for name, words in promised.items()
        for attempt, word in words.items()
        if ends.get(attempt) != word
    ]


def _last_rollout_completed(server: ServerProcess) -> bool:
    rows = server.query_rows("select status from rollouts order by created_at desc limit 1")
    return rows == [("completed",)]


CASES: dict[str, Callable[..., CaseResult]] = {
    "kills": kill_repeatedly,
    "halts": halt_repeatedly,
    "full": fill_disk,
    "locked": lock_database,
    "damaged": damage_image,
    "slow": stall_clients,
    "idle": hold_idle_connections,
}
