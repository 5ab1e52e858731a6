"""Scenarios of the power campaign: which update is cut, and the releases that it needs."""

import functools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from beacon_ota.campaign.power.cut_cases import CutCase
from beacon_ota.campaign.power.recording import Recording, record_update
from beacon_ota.campaign.rig import builds
from beacon_ota.campaign.rig.builds import ReleaseStore
from beacon_ota.errors import UsageError
from beacon_ota.images import boards

# Broken releases. A hang that sleeps starves the watchdog as well as one that computes.
CRASH = 'def run():\n    raise ValueError("broken release")\n'


HANG = "import time\ndef run():\n    while True:\n        time.sleep(1)\n"


BROKEN = {"crash": {"main.py": CRASH}, "hang": {"main.py": HANG}}


# A good release that crashes once a number is set in its NVS.
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


@dataclass(frozen=True)
class CutScenario:
    """An update whose power is cut.

    Args:
        kind: of the new release, see :data:`BROKEN`; ``rescue``: a good one, and after the cut the
            running one crashes until stage 0 looks for another.
        slot: destination, 1 from 0 or 0 from 1.
        real: releases with a real core.
        target: what the destination holds, where the orchestrator has no block index and the
            beacon keeps the core, see :data:`TARGETS`; "": it has one.
    """

    kind: str
    slot: int
    real: bool = False
    target: str = ""

    @property
    def name(self) -> str:
        """The name of the scenario in the names of its cases."""
        kind = "real" if self.real else self.kind
        return "-".join(filter(None, (self.target, kind, str(self.slot))))

    @property
    def versions(self) -> tuple[str, str, str]:
        """The versions that runs, is under test, and follows."""
        return ("1.0.0", "2.0.0", "3.0.0") if self.slot else ("2.0.0", "3.0.0", "4.0.0")

    @property
    def image_names(self) -> dict[str, str]:
        """Version → name in the store."""
        _, second, third = self.versions
        broken = f"-{self.kind}" if self.kind in BROKEN else ""
        return {second: self.release_name(second) + broken, third: self.release_name(third)}

    @property
    def running_name(self) -> str:
        """Name in the store of the running release."""
        return self.release_name(self.versions[0]) + ("-rotten" if self.kind == "rescue" else "")

    @property
    def flash_name(self) -> str:
        """Name in the store of the initial flash."""
        if self.target:
            return f"flash-{self.target}"
        return self.release_name(f"flash-{self.slot}") + (
            "-rotten" if self.kind == "rescue" else ""
        )

    @property
    def release_names(self) -> set[str]:
        """Names in the store of all releases that the beacon was ever sent."""
        before = TARGETS.get(self.target)
        names = {self.release_name("1.0.0"), self.running_name, *self.image_names.values()}
        return names | ({before} if before else set())

    def release_name(self, version: str) -> str:
        """Return the name in the store of a good release."""
        return version + "-real" * self.real


SCENARIOS = tuple(CutScenario(kind, slot) for kind in ("good", *BROKEN) for slot in (1, 0))


REAL = tuple(CutScenario("good", slot, real=True) for slot in (1, 0))


# An app-only release over one with the same core, which boots as soon as its head is written.
RESCUE = CutScenario("rescue", 0)


# What the destination holds → the name of that release in the store, None for nothing.
TARGETS = {"kept": "0.9.0", "other": "0.9.0-other", "blank": None}


# The core is that of the running slot, whatever the other one holds.
ADAPTIVE = tuple(
    CutScenario(kind, 1, target=target) for target in TARGETS for kind in ("good", "crash")
)


def scenario_of(case: CutCase) -> CutScenario:
    """Return the scenario of a case (UsageError ``case_name``)."""
    for scenario in (*SCENARIOS, RESCUE, *ADAPTIVE, *REAL):
        if scenario.name == case.scenario:
            return scenario
    raise UsageError("case_name", "no such scenario", found=case.scenario)


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
        under = builds.other_core() if kind == "other" else core
        extra = {"ballast": _make_ballast(version, 8 if core else 24)}
        shelf.put(name, builds.build_release(version, files, with_core=under, extra=extra))
    fresh = builds.build_flash(shelf.get(base("1.0.0")), stage0=stage0)
    shelf.put(base("flash-1"), fresh)
    slot = boards.load_board(builds.DEVICE).table.slots[1].offset
    for scenario in scenarios:
        before = TARGETS.get(scenario.target)
        held = shelf.get(before) if before else b""
        if scenario.target:
            shelf.put(scenario.flash_name, fresh[:slot] + held + fresh[slot + len(held) :])
    for flash, running in sorted({(s.flash_name, s.running_name) for s in scenarios if not s.slot}):
        way = record_update("up", fresh, "1.0.0", "2.0.0", {"2.0.0": running}, shelf)
        shelf.put(flash, way.flash_after_cut(len(way.ops), "before", 0))


def _make_ballast(version: str, sectors: int) -> bytes:
    """Return a file of which every second sector differs from version to version.

    Without it, releases would differ in one sector, and no cut could leave half of one.
    """
    sources = random.Random(version), random.Random("the same")
    return b"".join(sources[at % 2].randbytes(builds.SECTOR) for at in range(sectors))


def load_recording(shelf: ReleaseStore, scenario: CutScenario) -> Recording:
    """Return the recording of a scenario; record the update at the first call."""
    path = shelf.folder / f"{scenario.name}.rec"
    if not path.exists():
        first, second, _ = scenario.versions
        content = shelf.get(scenario.flash_name)
        made = record_update(
            scenario.name,
            content,
            first,
            second,
            scenario.image_names,
            shelf,
            index=not scenario.target,
        )
        made.save(path)
    return _read_recording(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _read_recording(path: Path, _changed: int) -> Recording:
    return Recording.load(path)
