"""Checks the invariants of an update after faults of any kind.

The module is pure: evidence in, violations out. Evidence is the content of the flash, the
advertisement and the database of the orchestrator, not the state inside the firmware.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from beacon_ota.campaign.rig import builds
from beacon_ota.images.otadata import ENTRY, PENDING, TRIALS, Entry
from beacon_ota.virtual.flash.nor import SECTOR, FlashOperation

IMAGE_AT_FAULT = ("crash", "watchdog", "self_test")  # codes that blame the image
NO_FAULT = ("power", "not_booted")
# The codes with which each kind of release may end its trial without a power cut.
EXPECTED_CODES = {"good": (), "crash": ("crash",), "hang": ("watchdog",)}
DEFECT_PHASES = ("repl", "corrupt")  # phases that a beacon must never end up in


@dataclass(frozen=True)
class EndState:
    """The state at the end of the attempt under test."""

    slot: str | None  # that runs
    confirmed: bool  # otadata says so
    tried: int  # boots of the slot under test
    attempts: Sequence[Mapping[str, Any]]  # at the release under test, as rows
    journal: Sequence[Sequence[Any]]  # what the orchestrator had of the beacon's


@dataclass(frozen=True)
class Evidence:
    """The evidence of a case.

    Args:
        kind: of the release under test, see :data:`EXPECTED_CODES`.
        old, new: slots of the release before and of the one under test.
        checksum: of the release under test, hex.
        versions: before, under test, and the one after.
        settled: None when that never came.
        further: rows of the attempts at the release that follows.
        boots: as (slot, how it ended, phase).
        trials: boots that the bootloader granted the release under test before it was settled.
        settings: NVS, the beacon's namespace.
        advertising: advertising data on the air, b"" when there is none.
        services: GATT attributes registered.
        wifi: connected.
        powered: it runs.
        mixtures: what boots though it is no whole release, as :func:`find_mixed_slots` found it.
        cost: least sectors that the update after it has to keep, and most bytes that it may fetch.
        provisioned: what it was provisioned with.
    """

    kind: str
    old: str
    new: str
    checksum: str
    versions: tuple[str, str, str]
    end_state: EndState | None
    further: Sequence[Mapping[str, Any]]
    boots: Sequence[tuple[str | None, str | None, str]]
    trials: int
    settings: Mapping[str, int | bytes]
    advertising: bytes
    services: int
    wifi: bool
    powered: bool
    provisioned: Mapping[str, int | bytes] = field(default_factory=lambda: builds.PROVISIONED)
    mixtures: Sequence[str] = ()
    cost: tuple[int, int] | None = None


def find_violations(e: Evidence) -> list[str]:
    """Return all violations, [] when the beacon has recovered."""
    wrong = [*check_boots(e), *check_settings(e), *e.mixtures]
    if e.end_state is None:
        return [*wrong, "the attempt came to no end"]
    return [*wrong, *_check_report(e, e.end_state), *check_next_update(e), *check_services(e)]


def classify_outcome(e: Evidence) -> str:
    """Return the class of outcome that a case belongs to."""
    if e.end_state is None:
        return "no end"
    row = e.end_state.attempts[-1]
    where = "new release" if e.end_state.confirmed else "old release"
    what = "/".join(str(row[name]) for name in ("failed_in", "code") if row[name])
    return ", ".join(filter(None, (where, str(row["result"]), what)))


def check_boots(e: Evidence) -> list[str]:
    """Check that every boot finds a verified image, and that at most three trials are granted."""
    wrong = []
    for slot, ended, phase in e.boots:
        if slot is None and ended != "power" or ended == "unbootable":
            wrong.append("nothing bootable")
        if phase in DEFECT_PHASES:
            wrong.append(f"{slot} ended in {phase}")
        if ended in ("panic", "crash"):
            wrong.append(f"{slot} ended by {ended}")
    if e.trials > TRIALS:
        wrong.append(f"{e.trials} trial boots")
    if e.kind == "good" and any(ended == "watchdog" for _, ended, _ in e.boots):
        wrong.append("a watchdog reset without a cause")
    return wrong


def check_settings(e: Evidence) -> list[str]:
    """Check that all settings are intact, and that the floor is that of a confirmed release."""
    wrong = [
        f"setting {key} is {'changed' if key in e.settings else 'lost'}"
        for key, value in e.provisioned.items()
        if e.settings.get(key) != value
    ]
    if "spare" in e.settings:
        wrong.append("a change of settings was never finished")
    floor = e.settings.get("floor", b"")
    allowed = [b"", *(version.encode() for version in e.versions)]
    if e.kind != "good":
        allowed.remove(e.versions[1].encode())
    if floor not in allowed:
        wrong.append(f"floor {floor!r}")
    return wrong


def _check_report(e: Evidence, settled: EndState) -> list[str]:
    """Check that there is one attempt with one result, the right one."""
    wrong = [
        f"the journal says {entry[2]}/{entry[3]}: {entry[4]}"
        for entry in settled.journal
        if entry[2] == "adapt" and entry[3] != "index"  # a power cut is no reason for that
    ]
    if e.kind != "good" and settled.tried > TRIALS:
        wrong.append(f"{settled.tried} boots of a broken release")
    if len(settled.attempts) != 1:
        wrong.append(f"{len(settled.attempts)} attempts")
    row = settled.attempts[-1]
    result, stage, code = row["result"], row["failed_in"], row["code"]
    if settled.confirmed:
        if e.kind != "good":
            wrong.append("a broken release was confirmed")
        if result != "success":
            wrong.append(f"it runs the new release, reported {result} {stage}/{code}")
        if settled.slot != e.new:
            wrong.append(f"confirmed in {e.new}, but {settled.slot} runs")
        return wrong
    if result not in ("failed", "rolled_back"):
        wrong.append(f"it runs the old release, reported {result}")
    if settled.slot != e.old:
        wrong.append(f"{settled.slot} runs unconfirmed")
    if stage != "boot" or code not in (*NO_FAULT, *EXPECTED_CODES[e.kind]):
        wrong.append(f"reported {stage}/{code}")
    if row["detail"] == "polled from the old image":
        wrong.append("the beacon never said what happened")
    witness = [
        entry[3] for entry in settled.journal if entry[2] == "boot" and entry[3] in IMAGE_AT_FAULT
    ]
    if witness and code not in IMAGE_AT_FAULT:
        wrong.append(f"the journal says {witness[-1]}, the report {code}")
    bad = e.settings.get("bad_sha", b"")
    known = isinstance(bad, bytes) and bytes.fromhex(e.checksum) in _split_digests(bad)
    if known != (result == "rolled_back" and code in IMAGE_AT_FAULT):
        wrong.append("known as bad" if known else "not known as bad")
    return wrong


def check_next_update(e: Evidence) -> list[str]:
    """Check that the next release was installed."""
    results = [row["result"] for row in e.further]
    if not results or results[-1] != "success":
        return [f"the update after it: {results[-1] if results else 'never tried'}"]
    return _check_cost(e.further[-1], e.cost) if e.cost else []


def _check_cost(row: Mapping[str, Any], cost: tuple[int, int]) -> list[str]:
    """Check that an update kept what was right, and fetched what was nowhere."""
    wrong = []
    if row["sectors_kept"] is None or row["sectors_kept"] < cost[0]:
        wrong.append(f"kept {row['sectors_kept']} sectors, and {cost[0]} were right")
    if row["bytes_fetched"] is None or row["bytes_fetched"] > cost[1]:
        wrong.append(f"fetched {row['bytes_fetched']} bytes, and {cost[1]} were missing")
    return wrong


def check_services(e: Evidence) -> list[str]:
    """Check power, positioning frame, GATT services and WiFi."""
    wrong = []
    if not e.powered:
        wrong.append("no power")
    if bytes(builds.IBEACON_FRAME) not in e.advertising:
        wrong.append("the positioning frame is not on the air")
    if not e.services:
        wrong.append("no GATT services")
    if not e.wifi:
        wrong.append("no WiFi")
    return wrong


def find_mixed_slots(slots: Mapping[str, bytes], releases: Sequence[bytes]) -> list[str]:
    """Return the slots that would boot although they hold no whole release.

    The hash that makes an image bootable covers its core only, not the app behind the core.

    Args:
        slots: label → content of those that the bootloader and stage 0 would take.
        releases: all that were ever sent to the beacon.
    """
    return [
        f"{label} boots, and holds no whole release"
        for label, content in slots.items()
        if not any(content.startswith(release) for release in releases)
    ]


def _split_digests(blob: bytes) -> list[bytes]:
    return [blob[at : at + 32] for at in range(0, len(blob), 32)]


def count_trial_boots(ops: Sequence[FlashOperation], otadata: int) -> int:
    """Count the trial boots that the bootloader granted: NEW turned into PENDING.

    Args:
        ops: completed operations.
        otadata: flash offset of the otadata partition.
    """
    places = (otadata, otadata + SECTOR)
    return sum(
        op.kind == "program"
        and op.offset in places
        and op.length == ENTRY
        and Entry.unpack(op.data).state == PENDING
        for op in ops
    )


def may_be_overload(e: Evidence) -> bool:
    """Return whether a busy machine, not the beacon, may explain the violations.

    The time of the beacon is scaled: a process that waits half a second for a CPU is reset by its
    watchdog.
    """
    if e.end_state is None or not e.further or e.further[-1]["result"] is None:
        return True
    slow = any(row["failed_in"] == "download" for row in (*e.end_state.attempts, *e.further))
    # A block index that does not come in time is done without.
    slow = slow or bool(e.cost and _check_cost(e.further[-1], e.cost))
    return slow or any(ended == "watchdog" for _, ended, _ in e.boots)
