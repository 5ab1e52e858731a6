"""Runs the cases of a campaign on several cores, and stores their outcomes.

Every outcome is written as one line of JSON as soon as it is known, so that an interrupted campaign
can be resumed.
"""

import atexit
import importlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, Protocol

from beacon_ota import lifeline
from beacon_ota.errors import ReachError

_ending = False  # a worker was told to end
RESULTS_FILE = "results.jsonl"
CASES_PER_WORKER = 100  # cases of one worker process before it is replaced
CAMPAIGN_MODULES = {
    "power": "beacon_ota.campaign.power.cuts",
    "mutants": "beacon_ota.campaign.power.mutants",
    "faults": "beacon_ota.campaign.faults.run",
    "server": "beacon_ota.campaign.kills.run",
    "soak": "beacon_ota.campaign.soak",
    "fuzz": "beacon_ota.campaign.fuzz.run",
}
CAMPAIGN_NAMES = tuple(CAMPAIGN_MODULES)


@dataclass(frozen=True)
class CampaignOptions:
    """The options of a campaign.

    Args:
        seed: of every random choice.
        every: run only each n-th case.
        minutes: duration of campaigns without an end.
        kills: number of kills of the orchestrator.
        core: file of a real core, for a sample of cases.
    """

    seed: int = 1
    every: int = 1
    minutes: float = 10.0
    kills: int = 1000
    core: str | None = None

    def as_report(self) -> dict[str, Any]:
        """Return the options for a report, without the path of the real core."""
        return {**asdict(self), "core": "real and synthetic" if self.core else "synthetic"}


@dataclass(frozen=True)
class CaseOutcome:
    """The outcome of a case.

    Args:
        name: of the case; enough to run it again.
        group: under which the report counts it.
        word: class of the outcome.
        wrong: violations; [] when the case passed.
        seconds: duration.
        first: violations of the first run, when the case was repeated more slowly.
        facts: numbers for the report.
    """

    name: str
    group: str
    word: str
    wrong: list[str]
    seconds: float = 0.0
    first: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CasePlan:
    """The cases of a campaign, in order, and numbers for the report.

    Args:
        jobs: maximum of parallel cases; None for the number of cores.
        notes: omitted parts and the reasons.
    """

    cases: Sequence[str]
    facts: Mapping[str, Any] = field(default_factory=dict)
    jobs: int | None = None
    notes: Sequence[str] = ()


class Campaign(Protocol):
    """The interface of a campaign module; ``folder`` holds files that cases share."""

    def plan_cases(self, folder: Path, options: CampaignOptions) -> CasePlan:
        """Prepare the shared files, and list the cases."""
        ...

    def run_case(self, name: str, folder: Path, options: CampaignOptions) -> CaseOutcome:
        """Run one case."""
        ...


def load_campaign(name: str) -> Campaign:
    """Return a campaign by its name."""
    return importlib.import_module(CAMPAIGN_MODULES[name])  # type: ignore[return-value]


def load_passed(folder: Path) -> dict[str, CaseOutcome]:
    """Return the outcomes without violations of an earlier run in this folder, by name."""
    found: dict[str, CaseOutcome] = {}
    path = folder / RESULTS_FILE
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            outcome = CaseOutcome(**json.loads(line))
        except (ValueError, TypeError):
            continue  # cut off in the middle of a line
        found[outcome.name] = outcome
    return {name: outcome for name, outcome in found.items() if not outcome.wrong}


def run_cases(
    name: str,
    folder: Path,
    options: CampaignOptions,
    cases: Sequence[str],
    *,
    jobs: int,
    resume: bool = False,
    on_outcome: Callable[[CaseOutcome], None] = lambda outcome: None,
) -> list[CaseOutcome]:
    """Run cases and return their outcomes, in the order of the cases.

    Args:
        folder: for shared files and outcomes.
        jobs: worker processes; 0 runs everything in this one.
        resume: skip the cases that have passed before.
        told: called with every outcome.

    Raises:
        ReachError: ``worker_lost``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = load_passed(folder) if resume else {}
    known = {case: known[case] for case in cases if case in known}
    for outcome in known.values():
        on_outcome(outcome)
    due = [case for case in cases if case not in known]
    with (folder / RESULTS_FILE).open("a" if resume else "w") as out:
        for outcome in _iter_outcomes(name, folder, options, due, jobs):
            known[outcome.name] = outcome
            out.write(json.dumps(asdict(outcome)) + "\n")
            out.flush()
            on_outcome(outcome)
    return [known[case] for case in cases]


def _iter_outcomes(
    name: str, folder: Path, options: CampaignOptions, cases: Iterable[str], jobs: int
) -> Iterator[CaseOutcome]:
    if not jobs:
        for case in cases:
            yield _run_one(name, case, folder, options)
        return
    context = get_context("spawn")
    pool = ProcessPoolExecutor(
        jobs, context, initializer=_prepare_worker, max_tasks_per_child=CASES_PER_WORKER
    )
    todo = iter(cases)
    running = set()
    try:
        while True:
            for case in todo:
                running.add(pool.submit(_run_in_worker, name, case, folder, options))
                if len(running) >= 2 * jobs:
                    break
            if not running:
                break
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise ReachError("worker_lost", "a worker process of the campaign died") from None
    except BaseException:  # interrupted: nobody waits for what they are at
        for worker in active_children():
            worker.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _prepare_worker() -> None:
    """Ignore SIGINT in a worker: the main process handles it and ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    lifeline.hold_on_to_parent()


def _end(*_signal: object) -> None:
    """End a worker: the case that it is at cleans up behind it."""
    global _ending
    if not _ending:
        _ending = True
        raise SystemExit(128 + signal.SIGTERM)


def _run_in_worker(name: str, case: str, folder: Path, options: CampaignOptions) -> CaseOutcome:
    """Run a case in a worker process."""
    try:
        if not _ending:
            return _run_one(name, case, folder, options)
    except SystemExit:
        if not _ending:
            raise
    atexit._run_exitfuncs()  # the pool would hand us the next case, or have us wait for it
    os._exit(128 + signal.SIGTERM)


def _run_one(name: str, case: str, folder: Path, options: CampaignOptions) -> CaseOutcome:
    """Run a case; an exception counts as a violation."""
    began = time.monotonic()
    try:
        outcome = load_campaign(name).run_case(case, folder, options)
    except Exception as error:
        outcome = CaseOutcome(case, "not run", "not run", [f"{type(error).__name__}: {error}"])
    taken = time.monotonic() - began
    return CaseOutcome(**{**asdict(outcome), "seconds": round(taken, 3)})


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
