"""Mutants: firmware with one deliberate defect, which the power campaign has to notice.

Each mutated rule of the firmware seems superfluous as long as no part fails. A case breaks one
rule, cuts the power where the rule matters, and fails when the invariants find no violation.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from beacon_ota.campaign.power import cut_cases, cuts, scenarios
from beacon_ota.campaign.power.cut_cases import CutCase
from beacon_ota.campaign.power.recording import Recording
from beacon_ota.campaign.power.scenarios import CutScenario
from beacon_ota.campaign.rig import builds
from beacon_ota.campaign.rig.builds import ReleaseStore
from beacon_ota.campaign.runner import CampaignOptions, CaseOutcome, CasePlan
from beacon_ota.errors import UsageError
from beacon_ota.images import boards


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Args:
        name: of the defect.
        path: below the firmware folder.
        text, instead: replaced text, found exactly once, and its replacement.
        scenario: the update in which the defect shows.
        partition: whose operations are cut; "" for an update without a cut.
    """

    name: str
    path: tuple[str, ...]
    text: str
    instead: str
    scenario: CutScenario
    partition: str

    def changed_source(self) -> str:
        """Return the changed file (UsageError ``mutant_text`` when the rule is not there)."""
        whole = builds.read_source(*self.path)
        if whole.count(self.text) != 1:
            raise UsageError("mutant_text", f"{self.name}: nothing to change", found=self.text)
        return whole.replace(self.text, self.instead)


MUTANTS = (
    Mutant(
        "valid-before-the-health-check",
        ("stage0", "boot.py"),
        "        start_trial_deadline(ota, sector)\n",
        "        Partition.mark_app_valid_cancel_rollback()\n",
        CutScenario("crash", 1),
        "",
    ),
    Mutant(
        "flips-before-counting",
        ("stage0", "boot.py"),
        '            ota.writeblocks(sector, b"\\0", at)\n',
        '            ota.writeblocks(sector, b"\\0\\0\\0\\0", 24)\n'
        '            ota.writeblocks(sector, b"\\0", at)\n',
        CutScenario("crash", 1),
        "otadata",
    ),
    Mutant(
        "erases-the-wrong-entry",
        ("app", "ota", "boot_slot.py"),
        "i != a and not entries[i].blank",
        "i == a and not entries[i].blank",
        CutScenario("good", 0),
        "otadata",
    ),
    Mutant(
        "core-kept-unread",
        ("app", "ota", "plan.py"),
        "            plan[sector] = _RUNNING\n",
        "            plan[sector] = _TARGET\n",
        CutScenario("good", 1, target="other"),
        "",
    ),
    Mutant(
        "first-sector-kept",
        ("app", "ota", "take.py"),
        "        if source == _TARGET and writer.written:\n",
        "        if source == _TARGET:\n",
        CutScenario("good", 0),
        "ota_0",
    ),
    Mutant(
        "writes-what-is-right",
        ("app", "ota", "writer.py"),
        "        for tried in (0, 1, 2):\n",
        "        for tried in (1, 1, 2):\n",
        CutScenario("good", 1, target="kept"),
        "ota_1",
    ),
    Mutant(
        "head-written-first",
        ("app", "ota", "writer.py"),
        "            data = memoryview(buf)[_PAGE:]\n            start = _PAGE\n",
        "            page[:] = self.head\n",
        CutScenario("good", 0),
        "ota_0",
    ),
)


def plan_cases(folder: Path, options: CampaignOptions) -> CasePlan:
    """List the mutants."""
    return CasePlan([mutant.name for mutant in MUTANTS[:: options.every]])


def run_case(name: str, folder: Path, options: CampaignOptions) -> CaseOutcome:
    """Break a rule; a violation when no cut shows it."""
    mutant = next((m for m in MUTANTS if m.name == name), None)
    if mutant is None:
        raise UsageError("case_name", "no such mutant", found=name)
    tried = 0
    for one, found in _run_cuts(mutant, ReleaseStore(folder / name)):
        tried += 1
        if found:
            return CaseOutcome(
                name, "mutant", "caught", [], facts={"cuts": tried, "by": one, "as": found}
            )
    return CaseOutcome(name, "mutant", "not noticed", [f"{tried} cuts, and none shows the defect"])


def _run_cuts(mutant: Mutant, shelf: ReleaseStore) -> Iterator[tuple[str, list[str]]]:
    """Yield cases and their violations."""
    kind, *rest = mutant.path
    text = mutant.changed_source()
    shelf.clear()
    if kind == "stage0":
        scenarios.prepare_releases(shelf, [mutant.scenario], stage0={rest[0]: text.encode()})
    else:
        scenarios.prepare_releases(shelf, [mutant.scenario], changes={"/".join(rest): text})
    recording = scenarios.load_recording(shelf, mutant.scenario)
    for one in _cases_for(mutant, recording):
        yield one.name, cuts.run_until_certain(one, shelf, recording)[1]


def _cases_for(mutant: Mutant, recording: Recording) -> Iterator[CutCase]:
    if not mutant.partition:
        yield CutCase(recording.name, 0, "before")  # the same as no cut at all
        return
    table = boards.load_board(builds.DEVICE).table
    part = next(p for p in table if p.name == mutant.partition)
    states: set[str] = set()
    for one, state in cut_cases.single_cuts(recording):
        if state not in states and part.offset <= recording.ops[one.number].offset < part.end:
            states.add(state)
            yield one
