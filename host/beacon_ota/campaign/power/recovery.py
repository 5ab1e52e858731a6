"""Runs one case: cuts the power, lets the beacon recover, and collects the evidence."""

from typing import cast

from beacon_ota.campaign.power.cut_cases import ANSWERED, CutCase
from beacon_ota.campaign.power.recording import Recording
from beacon_ota.campaign.power.scenarios import CutScenario, scenario_of
from beacon_ota.campaign.rig import builds, invariants
from beacon_ota.campaign.rig.beacon_rig import SCALE, Rig, scratch_folder, set_up_rig
from beacon_ota.campaign.rig.builds import ReleaseStore
from beacon_ota.campaign.rig.http_server import refuse_index
from beacon_ota.campaign.rig.invariants import EndState, Evidence
from beacon_ota.campaign.rig.orchestrator import ONE_ATTEMPT_PLAN
from beacon_ota.images import boards
from beacon_ota.virtual.flash import bootloader
from beacon_ota.virtual.flash.nor import SECTOR, CutMoment, PowerCutPoint
from beacon_ota.virtual.flash.nvs import Nvs
from beacon_ota.virtual.radio.vhci import RadiolessBackend

DEADLINE = 60.0  # real seconds at the ordinary scale for each of: recovery, the update after it


AFTERWARDS = {**ONE_ATTEMPT_PLAN, "retry": {"limit": 3, "pauses": ["1s"]}}


INDEXED = 8  # bytes of the block index for a sector


RESCUE_BOOTS = 12  # boots of a release that crashes, after which stage 0 has had its turn


def run_cut(
    case: CutCase, shelf: ReleaseStore, recording: Recording, *, slower: float = 1
) -> Evidence:
    """Cut the power, let the beacon recover, update it once more; return the evidence.

    Args:
        slower: factor by which time runs more slowly, for a busy machine.
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
            if scenario.target:
                b.orchestrator.http_server.choose_fault = refuse_index
            return _CutRun(case, scenario, shelf, b, DEADLINE * slower).collect_evidence(
                len(done), recording
            )


class _CutRun:
    """A running case."""

    def __init__(
        self, case: CutCase, scenario: CutScenario, shelf: ReleaseStore, b: Rig, deadline: float
    ):
        self._rig, self._scenario = b, scenario
        self._releases = [shelf.get(name) for name in sorted(scenario.release_names)]
        self._further = shelf.get(scenario.image_names[scenario.versions[2]])
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
        settled = cost = None
        mixtures = self._find_mixed_slots()
        if scenario.kind == "rescue":
            mixtures += self._crash_running_release()
        b.beacon.power_on()
        trials = invariants.count_trial_boots(recording.ops[:done], place)
        if self._wait_through_cut(lambda: b.attempt_over(target)):
            settled = self._take_end_state(target)
            trials += invariants.count_trial_boots(b.flash.journal, place)
            cost = self._bound_cost()
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
            cost=cost,
        )

    def _bound_cost(self) -> tuple[int, int]:
        """Return the sectors that the next update has to keep at least, and the bytes to fetch.

        What is right in its slot may not be written, and what either slot holds not be fetched;
        without a block index, that holds for the core.
        """
        flash = self._rig.flash
        boot = self._rig.beacon.boot
        slots = boards.load_board(builds.DEVICE).table.slots
        running = next((part for part in slots if boot and part.name == boot.slot), slots[0])
        written = next(part for part in slots if part is not running)
        kept = fetched = 0
        for at in range(0, len(self._further), SECTOR):
            wanted = self._further[at : at + SECTOR]
            right = flash.read(written.offset + at, SECTOR) == wanted
            kept += right and at > 0
            if self._scenario.target:
                fetched += SECTOR * (at >= builds.CORE_SIZE)
            else:
                here = right or flash.read(running.offset + at, SECTOR) == wanted
                fetched += INDEXED + SECTOR * (not here)
        return kept, fetched

    def _find_mixed_slots(self) -> list[str]:
        """Return the slots that would boot without holding a whole release."""
        flash, table = self._rig.flash, boards.load_board(builds.DEVICE).table
        content = {
            part.name: flash.read(part.offset, part.size)
            for part in table.slots
            if bootloader.verify_image(flash, part)
        }
        return invariants.find_mixed_slots(content, self._releases)

    def _crash_running_release(self) -> list[str]:
        """Let the running release crash until stage 0 looks for another one; return violations.

        WiFi is hidden meanwhile and the flash is restored, so that only the cut has an effect.
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
            wrong.append("stage 0 never looked for another release")
        elif taken() != whole:
            wrong.append(f"stage 0 {'left' if whole else 'took'} {label}")
        b.access_point.visible = True
        b.flash.restore(before)
        b.flash.journal.clear()
        return wrong

    def _wait_through_cut(self, condition) -> bool:
        """Wait for a condition; restore the power at once after the second cut."""
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
        """Return whether the next release is installed; a second cut may cause a retry."""
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
