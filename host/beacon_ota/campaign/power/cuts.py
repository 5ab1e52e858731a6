"""Power cuts at every moment of an update, and what becomes of the beacon.

A case cuts the power before, inside or after one flash operation of a recorded update, or right
after the orchestrator answered a request; some cut it a second time while the beacon recovers.
Its name says all of it, so it can be repeated: ``crash-1:137:inside:2+31:after:5`` is scenario,
operation, when, seed of what is torn; then flash operations until the second cut, when, seed.
"""

import contextlib
import functools
import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from beacon_ota.campaign.power.recording import Recording, record_update, replay_operation
from beacon_ota.campaign.rig import builds, invariants
from beacon_ota.campaign.rig.beacon_rig import SCALE, Rig, scratch_folder, set_up_rig
from beacon_ota.campaign.rig.builds import ReleaseStore
from beacon_ota.campaign.rig.invariants import EndState, Evidence
from beacon_ota.campaign.rig.orchestrator import ONE_ATTEMPT_PLAN
from beacon_ota.campaign.runner import CampaignOptions, CaseOutcome, CasePlan
from beacon_ota.errors import UsageError
from beacon_ota.images import boards
from beacon_ota.images.core import read_core
from beacon_ota.virtual.flash import bootloader
from beacon_ota.virtual.flash.nor import SECTOR, CutMoment, Flash, PowerCut, PowerCutPoint
from beacon_ota.virtual.flash.nvs import Nvs
from beacon_ota.virtual.radio.vhci import RadiolessBackend

DEADLINE = 60.0  # real seconds at the ordinary scale for each of: recovery, the update after it
SLOWER = (1, 5, 20)  # times that a case is given, as long as it is in doubt
TORN = 3  # seeds for what is torn where entries decide: NVS and otadata
ANSWERED = "answered"
AFTERWARDS = {**ONE_ATTEMPT_PLAN, "retry": {"limit": 3, "pauses": ["1s"]}}

# Broken releases. A hang that sleeps starves the watchdog as well as one that computes.
CRASH = 'def run():\n    raise ValueError("broken release")\n'
HANG = "import time\ndef run():\n    while True:\n        time.sleep(1)\n"
BROKEN = {"crash": {"main.py": CRASH}, "hang": {"main.py": HANG}}
# A release that is as good as any until somebody sets a number in its NVS.
DELAYED_CRASH = """
from esp32 import NVS
def run():
    try:
        NVS("beacon").get_i32("rotten")
    except OSError:
        import sound
        sound.run()
    raise ValueError("rotten")
"""
RESCUE_BOOTS = 12  # boots of a release that crashes, after which stage 0 has had its turn


@dataclass(frozen=True)
class CutScenario:
    """An update to be cut.

    Args:
        kind: of the new release, see :data:`BROKEN`; ``rescue``: a good one, and after the cut the
            running one crashes until stage 0 looks for another.
        slot: where it goes: 1 from 0, or 0 from 1.
        real: releases with a real core.
    """

    kind: str
    slot: int
    real: bool = False

    @property
    def name(self) -> str:
        """In the names of its cases."""
        return f"{'real' if self.real else self.kind}-{self.slot}"

    @property
    def versions(self) -> tuple[str, str, str]:
        """Running, under test, and the one after it."""
        return ("1.0.0", "2.0.0", "3.0.0") if self.slot else ("2.0.0", "3.0.0", "4.0.0")

    @property
    def image_names(self) -> dict[str, str]:
        """Version → name on the shelf."""
        _, second, third = self.versions
        broken = f"-{self.kind}" if self.kind in BROKEN else ""
        return {second: self.release_name(second) + broken, third: self.release_name(third)}

    @property
    def running_name(self) -> str:
        """Name on the shelf of the release that runs."""
        return self.release_name(self.versions[0]) + ("-rotten" if self.kind == "rescue" else "")

    @property
    def flash_name(self) -> str:
        """Name on the shelf of the flash that it begins with."""
        return self.release_name(f"flash-{self.slot}") + (
            "-rotten" if self.kind == "rescue" else ""
        )

    @property
    def release_names(self) -> set[str]:
        """Names on the shelf of all that such a beacon was ever given."""
        return {self.release_name("1.0.0"), self.running_name, *self.image_names.values()}

    def release_name(self, version: str) -> str:
        """Return the name on the shelf of a good release."""
        return version + "-real" * self.real


SCENARIOS = tuple(CutScenario(kind, slot) for kind in ("good", *BROKEN) for slot in (1, 0))
REAL = tuple(CutScenario("good", slot, real=True) for slot in (1, 0))
# An app-only release over another with the same core, which boots as soon as its head is there.
RESCUE = CutScenario("rescue", 0)
SAMPLE = 40  # cases of each scenario with a real core, and with crashes after the cut


@dataclass(frozen=True)
class CutCase:
    """One cut, or two."""

    scenario: str
    number: int  # of the operation; of the request for ``answered``
    when: str
    seed: int = 0
    ahead: int | None = None  # operations until the second cut
    again: str = ""
    again_seed: int = 0

    @property
    def name(self) -> str:
        """All of it in one word."""
        first = f"{self.scenario}:{self.number}:{self.when}:{self.seed}"
        if self.ahead is None:
            return first
        return f"{first}+{self.ahead}:{self.again}:{self.again_seed}"

    @classmethod
    def parse(cls, name: str) -> "CutCase":
        """Read a name (UsageError ``case_name``)."""
        try:
            first, _, second = name.partition("+")
            scenario, number, when, seed = first.split(":")
            case = cls(scenario, int(number), when, int(seed))
            if second:
                ahead, again, again_seed = second.split(":")
                case = cls(
                    scenario, case.number, when, case.seed, int(ahead), again, int(again_seed)
                )
            return case
        except ValueError:
            raise UsageError(
                "case_name", "no such case", found=name, expected="good-1:137:inside:0"
            ) from None


# -- the campaign


def plan_cases(folder: Path, options: CampaignOptions) -> CasePlan:
    """Record every scenario; list a case for each state that a cut can leave, then double cuts."""
    shelf = ReleaseStore(folder)
    core = read_core(Path(options.core)).data if options.core else None
    scenarios = (*SCENARIOS, RESCUE, *(REAL if core else ()))
    if not shelf.is_current(options.core or ""):
        shelf.clear()
        prepare_releases(shelf, (*SCENARIOS, RESCUE))
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


def distinct_cuts(recording: Recording) -> tuple[list[CutCase], dict[str, Any]]:
    """Return one case for each state that a cut can leave, and what is told of the scenario."""
    states: dict[str, CutCase] = {}
    count = 0
    for found, state in single_cuts(recording):
        count += 1
        states.setdefault(state, found)
    facts = {
        "uncut": recording.result,
        "operations": len(recording.ops),
        "requests": len(recording.states) - 1,
        "cuts": count,
        "states": len(states),
    }
    return list(states.values()), facts


def run_case(name: str, folder: Path, options: CampaignOptions) -> CaseOutcome:
    """Run one case, and again more slowly when the machine may have been to blame."""
    found = CutCase.parse(name)
    shelf = ReleaseStore(folder)
    recording = load_recording(shelf, scenario_of(found))
    evidence, wrong, first = run_until_certain(found, shelf, recording)
    group = found.scenario if found.ahead is None else f"{found.scenario} twice"
    facts = {"boots": len(evidence.boots), "trials": evidence.trials}
    return CaseOutcome(
        name, group, invariants.classify_outcome(evidence), wrong, first=first, facts=facts
    )


def scenario_of(case: CutCase) -> CutScenario:
    """Return the scenario of a case (UsageError ``case_name``)."""
    for scenario in (*SCENARIOS, RESCUE, *REAL):
        if scenario.name == case.scenario:
            return scenario
    raise UsageError("case_name", "no such scenario", found=case.scenario)


def run_until_certain(
    case: CutCase, shelf: ReleaseStore, recording: Recording
) -> tuple[Evidence, list[str], list[str]]:
    """Run a case, and again more slowly as long as a busy machine may have been to blame.

    Returns:
        The evidence, what is wrong, and what was wrong the first time.
    """
    first: list[str] = []
    for slower in SLOWER:
        evidence = run_cut(case, shelf, recording, slower=slower)
        wrong = invariants.find_violations(evidence)
        if not wrong or not invariants.may_be_overload(evidence):
            break
        first = first or wrong
    return evidence, wrong, first


# -- before the cases


def prepare_releases(
    shelf: ReleaseStore,
    scenarios: Sequence[CutScenario],
    *,
    core: bytes | None = None,
    stage0: Mapping[str, bytes] | None = None,
    changes: Mapping[str, str] | None = None,
) -> None:
    """Build releases, and the flash of the beacons that scenarios begin with.

    Args:
        scenarios: all with a real core, or none.
        core: the real one.
        stage0: files that stand in for stage 0's own.
        changes: sources that stand in for the app's own.
    """
    base = scenarios[0].release_name
    rotten = {"main.py": DELAYED_CRASH, "sound.py": builds.read_source("app", "main.py")}
    for name in sorted({name for scenario in scenarios for name in scenario.release_names}):
        version, _, kind = name.partition("-")
        files = {**(changes or {}), **{**BROKEN, "rotten": rotten}.get(kind, {})}
        shelf.put(name, builds.build_release(version, files, with_core=core))
    fresh = builds.build_flash(shelf.get(base("1.0.0")), stage0=stage0)
    shelf.put(base("flash-1"), fresh)
    for flash, running in sorted({(s.flash_name, s.running_name) for s in scenarios if not s.slot}):
        way = record_update("up", fresh, "1.0.0", "2.0.0", {"2.0.0": running}, shelf)
        shelf.put(flash, way.flash_after_cut(len(way.ops), "before", 0))


def load_recording(shelf: ReleaseStore, scenario: CutScenario) -> Recording:
    """Return the recording of a scenario; it is made when it is not there yet."""
    path = shelf.folder / f"{scenario.name}.rec"
    if not path.exists():
        first, second, _ = scenario.versions
        content = shelf.get(scenario.flash_name)
        record_update(scenario.name, content, first, second, scenario.image_names, shelf).save(path)
    return _read_recording(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _read_recording(path: Path, _changed: int) -> Recording:
    return Recording.load(path)


def is_deciding(offset: int) -> bool:
    """Does an operation at this flash offset write entries that decide: NVS, otadata?"""
    table = boards.load_board(builds.DEVICE).table
    return any(part.offset <= offset < part.end for part in (table.nvs, table.otadata) if part)


def single_cuts(recording: Recording) -> Iterator[tuple[CutCase, str]]:
    """Yield every single cut of an update with the state that it leaves.

    Cases of the same state have the same future; one of them need be run. The trials that were
    granted so far belong to it, because they are bounded.
    """
    flash = Flash(recording.before)
    state = _FlashDigest(flash, {op.offset // SECTOR * SECTOR for op in recording.ops})
    name = recording.name
    place = boards.load_board(builds.DEVICE).otadata.offset
    granted = 0
    for number, op in enumerate(recording.ops):
        known = recording.state_index_at(number)
        yield CutCase(name, number, "before"), state.state_key(known, granted)
        sector = op.offset // SECTOR * SECTOR  # no operation crosses one
        content = flash.read(sector, SECTOR)
        for seed in range(TORN if is_deciding(op.offset) else 1):
            flash.cut = PowerCutPoint(flash.ops, "inside", seed)
            with contextlib.suppress(PowerCut):
                replay_operation(flash, op)
            flash.power_on()
            state.update_sector(sector)
            yield CutCase(name, number, "inside", seed), state.state_key(known, granted)
            flash.overwrite(sector, content)
        replay_operation(flash, op)
        state.update_sector(sector)
        granted += invariants.count_trial_boots([op], place)
        yield CutCase(name, number, "after"), state.state_key(known, granted)
        for at, known in enumerate(recording.states):
            if known.ops == number + 1:
                yield CutCase(name, at, ANSWERED), state.state_key(at, granted)


class _FlashDigest:
    """A digest of a flash's content that follows one sector at a time."""

    def __init__(self, flash: Flash, sectors: Iterable[int]):
        self._flash = flash
        self._sectors: dict[int, bytes] = {}
        for offset in sectors:
            self.update_sector(offset)

    def update_sector(self, offset: int) -> None:
        """Take a sector's present content in."""
        data = self._flash.read(offset, SECTOR)
        self._sectors[offset] = hashlib.blake2b(data, digest_size=16).digest()

    def state_key(self, known: int, granted: int) -> str:
        """Return a word for the content, what the orchestrator knew, and the trials granted."""
        whole = hashlib.blake2b(b"".join(self._sectors.values()), digest_size=16)
        return f"{whole.hexdigest()}:{known}:{granted}"


def choose_double_cuts(singles: Sequence[CutCase], count: int, seed: int) -> list[CutCase]:
    """Choose cases with a second cut during the recovery."""
    chance = random.Random(seed)
    chosen = []
    for _ in range(count):
        one = chance.choice(singles)
        when = chance.choice(("before", "inside", "after"))
        ahead = int(chance.expovariate(1 / 25))  # the recovery's own writes come first
        chosen.append(
            CutCase(
                one.scenario, one.number, one.when, one.seed, ahead, when, chance.randrange(1000)
            )
        )
    return chosen


# -- one case


def run_cut(
    case: CutCase, shelf: ReleaseStore, recording: Recording, *, slower: float = 1
) -> Evidence:
    """Cut, let the beacon recover, update it once more; return what there is to judge.

    Args:
        slower: how many times slower than usual time runs: for a machine that is busy.
    """
    number = case.number
    if case.when == ANSWERED:
        known = recording.states[number]
        content = recording.flash_after_cut(known.ops, "before", 0)
        done = recording.ops[: known.ops]
    else:
        known = recording.states[recording.state_index_at(number)]
        content = recording.flash_after_cut(number, cast(CutMoment, case.when), case.seed)
        done = recording.ops[: number + (case.when == "after")]
    scenario = scenario_of(case)
    with scratch_folder() as folder:
        shelf.copy_blobs(recording.images.values(), folder)
        with set_up_rig(
            content,
            folder,
            database=known.database,
            now=known.now + 1,
            scale=SCALE / slower,
            record=True,
        ) as b:
            return _CutRun(case, scenario, shelf, b, DEADLINE * slower).collect_evidence(
                len(done), recording
            )


class _CutRun:
    """A case under way."""

    def __init__(
        self, case: CutCase, scenario: CutScenario, shelf: ReleaseStore, b: Rig, deadline: float
    ):
        self._rig, self._scenario = b, scenario
        self._releases = [shelf.get(name) for name in sorted(scenario.release_names)]
        self._deadline = deadline
        self._second_cut_due = case.ahead is not None
        if case.ahead is not None:
            b.flash.cut = PowerCutPoint(
                b.flash.ops + case.ahead, cast(CutMoment, case.again), case.again_seed
            )

    def collect_evidence(self, done: int, recording: Recording) -> Evidence:
        b, scenario = self._rig, self._scenario
        _, second, third = scenario.versions
        orchestrator = b.orchestrator
        target = orchestrator.firmware_row(second)["id"]
        further = orchestrator.firmware_row(third)["id"]
        place = boards.load_board(builds.DEVICE).otadata.offset
        settled = None
        mixtures = self._find_mixed_slots()
        if scenario.kind == "rescue":
            mixtures += self._crash_running_release()
        b.beacon.power_on()
        trials = invariants.count_trial_boots(recording.ops[:done], place)
        if self._wait_through_cut(lambda: b.attempt_over(target)):
            settled = self._take_end_state(target)
            trials += invariants.count_trial_boots(b.flash.journal, place)
            orchestrator.roll_out(further, AFTERWARDS)
            self._wait_through_cut(
                lambda: self._further_installed(further) and self._is_advertising()
            )
        assert isinstance(b.beacon.bluetooth, RadiolessBackend)
        radio = b.beacon.bluetooth
        mixtures += self._find_mixed_slots()
        return Evidence(
            "good" if scenario.kind == "rescue" else scenario.kind,
            f"ota_{1 - scenario.slot}",
            f"ota_{scenario.slot}",
            orchestrator.firmware_row(second)["checksum"],
            scenario.versions,
            settled,
            orchestrator.attempt_rows(further),
            [(boot.slot, boot.ended, boot.phase) for boot in b.beacon.boots],
            trials,
            {key: value for (space, key), value in b.beacon.settings().items() if space == SPACE},
            radio.data if radio.advertising is not None else b"",
            len(radio.values),
            b.beacon.wlan.connected,
            b.beacon.powered,
            mixtures=mixtures,
        )

    def _find_mixed_slots(self) -> list[str]:
        """Return what is wrong with the slots as they are now."""
        flash, table = self._rig.flash, boards.load_board(builds.DEVICE).table
        content = {
            part.name: flash.read(part.offset, part.size)
            for part in table.slots
            if bootloader.verify_image(flash, part)
        }
        return invariants.find_mixed_slots(content, self._releases)

    def _crash_running_release(self) -> list[str]:
        """Let the running release crash until stage 0 has looked for another; say what is wrong.

        Nobody hears of it, and the flash is put back: what is judged afterwards is the cut alone.
        """
        b = self._rig
        before = b.flash.snapshot()
        label = f"ota_{self._scenario.slot}"
        table = boards.load_board(builds.DEVICE).table
        whole = bootloader.verify_image(b.flash, table.slots[self._scenario.slot])
        assert table.nvs is not None
        store = Nvs(b.flash, table.nvs)
        store.set(store.open_namespace(SPACE), "rotten", 1)
        b.access_point.visible = False
        b.beacon.power_on()

        def taken() -> bool:
            return any(boot.slot == label for boot in b.beacon.boots)

        looked = b.wait_for(
            lambda: len(b.beacon.boots) >= RESCUE_BOOTS or taken(),
            self._deadline,
            "stage 0 to look for another release",
        )
        b.beacon.power_cut()
        wrong = []
        if not looked:
            wrong.append("stage 0 never had its turn")
        elif taken() != whole:
            wrong.append(f"stage 0 {'left' if whole else 'took'} {label}")
        b.access_point.visible = True
        b.flash.restore(before)
        b.flash.journal.clear()
        return wrong

    def _wait_through_cut(self, condition) -> bool:
        """Wait; when the second cut comes, the power is back at once."""
        b = self._rig
        if self._second_cut_due:
            if not b.wait_for(lambda: not b.beacon.powered or condition(), self._deadline, ""):
                return False
            if b.beacon.powered:
                return True
            self._second_cut_due = False
            b.beacon.power_on()
        return b.wait_for(condition, self._deadline, "")

    def _further_installed(self, firmware_id: str) -> bool:
        """Is the release that follows there? A second cut may fall into it: then it is retried."""
        results = [row["result"] for row in self._rig.orchestrator.attempt_rows(firmware_id)]
        return "success" in results and self._rig.nothing_to_report

    def _take_end_state(self, target: str) -> EndState:
        b = self._rig
        confirmed = b.is_confirmed(self._scenario.slot)
        slot = b.beacon.boot.slot if b.beacon.boot else None
        tried = sum(boot.slot == f"ota_{self._scenario.slot}" for boot in b.beacon.boots)
        orchestrator = b.orchestrator
        rows, journal = (
            orchestrator.attempt_rows(target),
            orchestrator.journal_entries(builds.BEACON),
        )
        return EndState(slot, confirmed, tried, rows, journal)

    def _is_advertising(self) -> bool:
        radio = self._rig.beacon.bluetooth
        return isinstance(radio, RadiolessBackend) and radio.advertising is not None


SPACE = "beacon"
