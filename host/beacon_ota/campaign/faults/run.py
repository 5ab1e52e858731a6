"""Runs the cases of the fault matrix on virtual beacons.

The name of a case has one value of each dimension, in their order: ``stall+404+ok+hang``. Faults
outside of the image last until the first attempt has failed. A slot that was given up stays given
up until a power cut.
"""

import json
from pathlib import Path
from typing import Any

from beacon_ota.campaign.faults import matrix
from beacon_ota.campaign.faults.matrix import FaultCase
from beacon_ota.campaign.faults.releases import FIRST, SECOND, THIRD, prepare_releases
from beacon_ota.campaign.rig import builds, invariants
from beacon_ota.campaign.rig.beacon_rig import LATEST, Rig, scratch_folder, set_up_rig
from beacon_ota.campaign.rig.builds import ReleaseStore
from beacon_ota.campaign.rig.http_server import (
    FOREIGN_ANSWERS,
    AnswerFault,
    HttpRequest,
    refuse_index,
)
from beacon_ota.campaign.rig.invariants import EndState, Evidence
from beacon_ota.campaign.rig.orchestrator import ONE_ATTEMPT_PLAN
from beacon_ota.campaign.runner import CampaignOptions, CaseOutcome, CasePlan
from beacon_ota.errors import UsageError
from beacon_ota.images import boards
from beacon_ota.virtual.flash.nor import SECTOR
from beacon_ota.virtual.net.network import LinkFaults
from beacon_ota.virtual.radio.vhci import RadiolessBackend
from beacon_ota.wire.report import FINAL

SCALE = 20.0


DEADLINE = 60.0  # real seconds at that scale for all attempts, and for the update after them


SLOWER = (4, 12)  # factors of the repetitions after a violation: the machine may be busy


ROLLOUT = {**ONE_ATTEMPT_PLAN, "retry": {"limit": matrix.ATTEMPTS, "pauses": ["30s"]}}


POLICY = {"stall_s": 10, "give_up_s": 600, "trial_s": 40}


BAD = 2  # the sector of the slot that fails


ETAG = 'W/"changed-gzip"'  # as a compressing proxy changes it


RESUME = 20_000  # bytes after which a connection ends that has to be resumed


FOREIGN_ANSWERS_MAX = 5  # unsigned answers in a row: fewer than the beacon has tries
# The firmware (ota/agent.py) sends a final report so often before it polls without it. It may send
# some of them without a network, before this harness has restored the password.
FINAL_REPORT_TRIES = 6
LOST_REPORTS_MAX = 2


TRIAL_LIMIT = 40_000  # ms, in the place of stage 0's quarter of an hour


def plan_cases(folder: Path, options: CampaignOptions) -> CasePlan:
    """Build the releases; list cases that cover all pairs, and every fault alone."""
    prepare_releases(ReleaseStore(folder))
    cases = dict.fromkeys(
        mix.name for mix in (*matrix.single_fault_cases(), *matrix.pairwise_cases(options.seed))
    )
    sizes = {name: len(values) for name, values in matrix.DIMENSIONS.items()}
    return CasePlan(list(cases)[:: options.every], {"values": sizes, "cases": len(cases)})


def run_case(name: str, folder: Path, options: CampaignOptions) -> CaseOutcome:
    """Run one case; after a violation repeat it more slowly: the machine may be busy."""
    try:
        mix = FaultCase.parse(name)
    except (ValueError, KeyError):
        raise UsageError(
            "case_name", "no such case", found=name, expected="network+server+flash+image"
        ) from None
    shelf = ReleaseStore(folder)
    word, wrong = play_case(mix, shelf)
    first = wrong
    for slower in SLOWER:
        if wrong:
            word, wrong = play_case(mix, shelf, slower=slower)
    return CaseOutcome(name, group_of(mix), word, wrong, first=first)


def group_of(mix: FaultCase) -> str:
    """Return the group of a case in the report: the expected end of its first attempt."""
    _, stage, code = matrix.expected_ends(mix)[0]
    return f"{stage}/{code}" if stage else "success"


def play_case(mix: FaultCase, shelf: ReleaseStore, *, slower: float = 1) -> tuple[str, list[str]]:
    """Run a case; return the ends of its attempts as text, and the violations."""
    limit = builds.read_source("stage0", "boot.py").replace("900_000", str(TRIAL_LIMIT))
    stage0 = {"boot.py": limit.encode()} if mix.image.name == "hang-fed" else None
    policy = {**POLICY, "give_up_s": 120} if mix.network.name == "wrong-network" else POLICY
    content = builds.build_flash(shelf.get(FIRST), stage0=stage0, policy=policy)
    with (
        scratch_folder() as folder,
        set_up_rig(content, folder, scale=SCALE / slower, record=True) as b,
    ):
        return _FaultRun(mix, shelf, b, DEADLINE * slower).play_and_check()


class _FaultRun:
    """A running case. Callbacks of the HTTP server run in its event loop."""

    def __init__(self, mix: FaultCase, shelf: ReleaseStore, b: Rig, deadline: float):
        self._mix, self._shelf, self._rig, self._deadline = mix, shelf, b, deadline
        self._expected = matrix.expected_ends(mix)
        self._faults_ended = self._offered = self._restart = False
        self._foreign_answers: dict[str, int] = {}  # answers of a stranger's, by what was asked
        self._cycle = any(code == "no_slot" for _, _, code in self._expected)
        self._firmware = ""
        self._slot = next(
            part.offset for part in boards.load_board(builds.DEVICE).table if part.name == "ota_1"
        )
        b.orchestrator.http_server.choose_fault = self._choose_fault
        b.orchestrator.http_server.before_answer = self._before_answer
        _set_flash_fault(b, mix.flash.name, self._slot + BAD * SECTOR)
        if mix.flash.name == "nvs-full":
            b.beacon.fill_nvs()
        elif mix.flash.name == "nvs-worn":
            b.beacon.wear_nvs(1)

    def play_and_check(self) -> tuple[str, list[str]]:
        b, mix = self._rig, self._mix
        orchestrator = b.orchestrator
        orchestrator.register_beacon(builds.BEACON, builds.KEY, builds.DEVICE)
        image = self._shelf.get(f"{SECOND}-{mix.image.name}")
        self._firmware = orchestrator.upload_release(image, SECOND, builds.DEVICE)
        further = orchestrator.upload_release(self._shelf.get(THIRD), THIRD, builds.DEVICE)
        orchestrator.roll_out(self._firmware, ROLLOUT)
        b.beacon.power_on()
        b.wait_for(self._attempts_over, self._deadline, "")
        rows = orchestrator.attempt_rows(self._firmware)
        ends = [(row["result"] or "", row["failed_in"] or "", row["code"] or "") for row in rows]
        settled = self._take_end_state(rows)
        orchestrator.roll_out(further, ROLLOUT)
        b.wait_for(lambda: self._further_installed(further), self._deadline, "")
        word = ", then ".join(" ".join(filter(None, end)) for end in ends) or "nothing"
        return word, self._find_violations(ends, settled, further)

    def _find_violations(self, ends: list, settled: EndState, further: str) -> list[str]:
        evidence = self._collect_evidence(settled, further)
        wrong = []
        if ends != self._expected:
            wrong.append(f"expected {self._expected}, found {ends}")
        said = {(entry[2], entry[3]) for entry in settled.journal}
        written = self._expected[matrix.first_end_unjournaled(self._mix) :]
        wrong += [
            f"the journal never said {stage}/{code}"
            for _, stage, code in written
            if stage and (stage, code) not in said
        ]
        if any(row["detail"] == "polled from the old image" for row in settled.attempts):
            wrong.append("the beacon never said what happened")
        numbers = [entry[0] for entry in settled.journal]
        if len(numbers) != len(set(numbers)):
            wrong.append("a journal entry was taken twice")
        return [
            *wrong,
            *invariants.check_boots(evidence),
            *invariants.check_settings(evidence),
            *invariants.check_next_update(evidence),
            *invariants.check_services(evidence),
        ]

    # -- in the event loop of the HTTP server

    def _choose_fault(self, request: HttpRequest) -> AnswerFault | None:
        foreign = self._choose_foreign_answer(request)
        if foreign is not None:
            return foreign
        if request.method == "POST" and request.path.endswith("/ota_status"):
            self._note_report(json.loads(request.body))
        if request.path.endswith("/blocks"):  # the faults are made for whole downloads
            return refuse_index(request)
        if self._faults_ended or not request.path.endswith("/download"):
            return None
        resumed = "range" in request.headers
        name = self._mix.server.name
        if name == "restart" and not resumed:
            self._restart = True
            return AnswerFault(close=RESUME)
        return {
            "404": AnswerFault(status=404),
            "500": AnswerFault(status=500),
            "503": AnswerFault(status=503, retry_after=1),
            "short": AnswerFault(close=0),
            "long": AnswerFault(more=1000),
            "lie": AnswerFault(lie=1000),
            "other": AnswerFault(other=True),
            "etag": AnswerFault(etag=ETAG) if resumed else AnswerFault(close=RESUME, etag=ETAG),
        }.get(name)

    def _choose_foreign_answer(self, request: HttpRequest) -> AnswerFault | None:
        """Return an unsigned answer where one is due, another kind each time."""
        name = self._mix.server.name
        asked = _classify_request(request)
        if asked == "trial":
            self._fill_nvs_if_due()
        when = {
            "foreign-poll": ("poll",),
            "foreign-download": ("download",),
            "foreign-verifying": ("verifying", "rebooting"),
            "foreign-trial": ("trial",),
            "foreign-final": FINAL,
        }
        if asked not in when.get(name, ()):
            return None
        met = self._foreign_answers.get(asked, 0)
        if self._faults_ended if asked == "trial" else met >= foreign_answers(self._mix, asked):
            return None
        self._foreign_answers[asked] = met + 1
        # Every kind of answer comes first, and comes last, in one of the cases.
        return FOREIGN_ANSWERS[(met + list(when).index(name)) % len(FOREIGN_ANSWERS)]

    def _note_report(self, doc: dict[str, Any]) -> None:
        if doc.get("update_status") in FINAL:
            self._end_faults()

    async def _before_answer(self, request: HttpRequest, status: int) -> None:
        if request.path.startswith(LATEST) and status == 200 and not self._offered:
            self._offered = True
            if self._mix.flash.name == "flip":  # only from here on, because reading takes longer
                self._rig.beacon.flip_bits({self._slot + BAD * SECTOR + 100: 0x10})
            self._rig.beacon.link.faults = {
                "reset": LinkFaults(reset_after=30_000),
                "stall": LinkFaults(stall_after=30_000),
                "slow": LinkFaults(throttle=60_000),
                "loss": LinkFaults(loss=0.05),
                "wifi-off": LinkFaults(drop_after=40_000),
                "names-gone": LinkFaults(names=False),
            }.get(self._mix.network.name, LinkFaults())
        lost = self._mix.network.name == "wrong-network" and not self._faults_ended
        if lost and request.path.endswith("/download"):
            self._rig.access_point.password = b"changed"
            self._rig.beacon.wlan.lose_connection()

    def _fill_nvs_if_due(self) -> None:
        """Fill NVS from a trial on, in cases with ``nvs-fills``."""
        if self._mix.flash.name == "nvs-fills" and not self._faults_ended:
            self._rig.beacon.fill_nvs()

    def _end_faults(self) -> None:
        self._faults_ended = True
        if self._mix.flash.blind:
            self._rig.beacon.drain_nvs()
            self._rig.beacon.wear_nvs(0)
        self._rig.beacon.link.faults = LinkFaults()
        self._rig.access_point.password = builds.PASSWORD.encode()

    # -- in the thread of the campaign

    def _attempts_over(self) -> bool:
        b = self._rig
        if b.beacon.boot and b.beacon.boot.slot == "ota_1":
            self._fill_nvs_if_due()
        if self._restart:
            self._restart = False
            b.orchestrator.close()
            b.orchestrator.open()
        if not self._faults_ended and self._record_is_final():
            self._end_faults()
        if self._mix.network.name == "names-gone" and b.is_confirmed(1):
            b.beacon.link.faults = LinkFaults()  # ends also where NVS stores no end
        rows = b.orchestrator.attempt_rows(self._firmware)
        ended = [row for row in rows if row["result"]]
        if ended and self._faults_ended:
            _set_flash_fault(b, "", 0)
        if self._cycle and ended and ended[-1]["code"] == "no_slot":
            self._cycle = False
            b.beacon.power_cut()
            b.beacon.power_on()
        return len(ended) >= len(self._expected) and b.nothing_to_report

    def _record_is_final(self) -> bool:
        """Return whether the record of the attempt in NVS is final."""
        record = self._rig.beacon.setting("attempt")
        return isinstance(record, bytes) and json.loads(record).get("status") in FINAL

    def _further_installed(self, further: str) -> bool:
        rows = self._rig.orchestrator.attempt_rows(further)
        radio = self._rig.beacon.bluetooth
        up = isinstance(radio, RadiolessBackend) and radio.advertising is not None
        return (
            any(row["result"] == "success" for row in rows) and self._rig.nothing_to_report and up
        )

    def _take_end_state(self, rows: list[dict[str, Any]]) -> EndState:
        b = self._rig
        slot = b.beacon.boot.slot if b.beacon.boot else None
        tried = sum(boot.slot == "ota_1" for boot in b.beacon.boots)
        return EndState(slot, False, tried, rows, b.orchestrator.journal_entries(builds.BEACON))

    def _collect_evidence(self, settled: EndState, further: str) -> Evidence:
        b = self._rig
        radio = b.beacon.bluetooth
        assert isinstance(radio, RadiolessBackend)
        return Evidence(
            "broken" if self._mix.image.ends else "good",
            "ota_0",
            "ota_1",
            b.orchestrator.firmware_row(SECOND)["checksum"],
            (FIRST, SECOND, THIRD),
            settled,
            b.orchestrator.attempt_rows(further),
            [(boot.slot, boot.ended, boot.phase) for boot in b.beacon.boots],
            0,
            {
                key: value
                for (space, key), value in b.beacon.settings().items()
                if space == "beacon"
            },
            radio.data if radio.advertising is not None else b"",
            len(radio.values),
            b.beacon.wlan.connected,
            b.beacon.powered,
            {key: value for key, value in builds.PROVISIONED.items() if key != "policy"},
        )


def foreign_answers(case: FaultCase, asked: str) -> int:
    """Return how many requests of a kind get an unsigned answer, one after the other."""
    lost = case.network.name == "wrong-network" and asked in FINAL
    return FOREIGN_ANSWERS_MAX - LOST_REPORTS_MAX * lost


def _classify_request(request: HttpRequest) -> str:
    """Return ``poll``, ``trial``, ``download``, or the status that a beacon reports."""
    if request.method == "POST":
        return json.loads(request.body).get("update_status", "")
    if request.path.startswith(LATEST):
        return "trial" if "state=trial" in request.target else "poll"
    return "download" if request.path.endswith("/download") else ""


def _set_flash_fault(b: Rig, kind: str, offset: int) -> None:
    """Give a sector of the flash one fault; with ``kind`` "", remove all faults."""
    faults = b.flash.faults
    faults.fail_erase = {offset // SECTOR} if kind == "erase" else set()
    faults.fail_program = {offset // SECTOR} if kind == "program" else set()
    faults.stuck = {offset + at: 0xFF for at in range(64)} if kind == "stuck" else {}
    if not kind and faults.flips:
        b.beacon.flip_bits({})
