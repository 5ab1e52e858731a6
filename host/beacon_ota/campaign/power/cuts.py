"""Cuts the power at every moment of an update, and checks the recovery of the beacon.

A case cuts the power before, inside or after one flash operation of a recorded update, or right
after the orchestrator answered a request; some cut it a second time while the beacon recovers.
Its name says all of it, so it can be repeated: ``crash-1:137:inside:2+31:after:5`` is scenario,
operation, when, seed of what is torn; then flash operations until the second cut, when, seed.
"""

import random
from pathlib import Path
from typing import Any

from beacon_ota.campaign.power.cut_cases import CutCase, choose_double_cuts, distinct_cuts
from beacon_ota.campaign.power.recording import Recording
from beacon_ota.campaign.power.recovery import run_cut
from beacon_ota.campaign.power.scenarios import (
    ADAPTIVE,
    REAL,
    RESCUE,
    SCENARIOS,
    load_recording,
    prepare_releases,
    scenario_of,
)
from beacon_ota.campaign.rig import invariants
from beacon_ota.campaign.rig.builds import ReleaseStore
from beacon_ota.campaign.rig.invariants import Evidence
from beacon_ota.campaign.runner import CampaignOptions, CaseOutcome, CasePlan
from beacon_ota.images.core import read_core

SLOWER = (1, 5, 20)  # factors of time for the repetitions of a doubtful case


SAMPLE = 40  # cases of each scenario with a real core, and with crashes after the cut


def plan_cases(folder: Path, options: CampaignOptions) -> CasePlan:
    """Record every scenario; list a case for each state that a cut can leave, then double cuts."""
    shelf = ReleaseStore(folder)
    core = read_core(Path(options.core)).data if options.core else None
    scenarios = (*SCENARIOS, RESCUE, *ADAPTIVE, *(REAL if core else ()))
    if not shelf.is_current(options.core or ""):
        shelf.clear()
        prepare_releases(shelf, (*SCENARIOS, RESCUE, *ADAPTIVE))
        if core:
            prepare_releases(shelf, REAL, core=core)
        shelf.mark_current(options.core or "")
    chosen: list[CutCase] = []
    facts: dict[str, Any] = {}
    for scenario in scenarios:
        found, facts[scenario.name] = distinct_cuts(load_recording(shelf, scenario))
        if scenario.real or scenario is RESCUE:
            found = random.Random(options.seed).sample(found, SAMPLE)
            facts[scenario.name]["states"] = f"{SAMPLE} of {facts[scenario.name]['states']}"
        chosen += found
    ordinary = [case for case in chosen if case.scenario != RESCUE.name]
    double = choose_double_cuts(ordinary, len(ordinary) // 6, options.seed)
    cases = [case.name for case in [*chosen, *double]]
    notes = () if core else ("No real core was given: all releases have a small synthetic one.",)
    return CasePlan(cases[:: options.every], {**facts, "second cuts": len(double)}, notes=notes)


def run_case(name: str, folder: Path, options: CampaignOptions) -> CaseOutcome:
    """Run one case, with slower repetitions when a busy machine may explain its violations."""
    found = CutCase.parse(name)
    shelf = ReleaseStore(folder)
    recording = load_recording(shelf, scenario_of(found))
    evidence, wrong, first = run_until_certain(found, shelf, recording)
    group = found.scenario if found.ahead is None else f"{found.scenario} twice"
    facts = {"boots": len(evidence.boots), "trials": evidence.trials}
    return CaseOutcome(
        name, group, invariants.classify_outcome(evidence), wrong, first=first, facts=facts
    )


def run_until_certain(
    case: CutCase, shelf: ReleaseStore, recording: Recording
) -> tuple[Evidence, list[str], list[str]]:
    """Run a case, and repeat it more slowly while a busy machine may explain its violations.

    Returns:
        The evidence, the violations, and the violations of the first run.
    """
    first: list[str] = []
    for slower in SLOWER:
        evidence = run_cut(case, shelf, recording, slower=slower)
        wrong = invariants.find_violations(evidence)
        if not wrong or not invariants.may_be_overload(evidence):
            break
        first = first or wrong
    return evidence, wrong, first
