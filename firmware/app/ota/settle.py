# What this boot is: the end of an attempt that is to be told, a release on trial that is to be seen
# through its health check, or nothing new. Runs once and is forgotten. trial.py decides.

import asyncio
import time

import machine
from micropython import const
from net.http import HttpError
from wire import versions
from wire.shapes import clip

from ota import known, schedule, trial

_LOOK = const(500)  # ms between looks at a release on trial
_SOFT = const(5)
_POWER_ON = const(1)
_RESCUE = const(8)  # crashes after which stage 0 tries another slot


# `ask(state)` asks the orchestrator for work.
async def run(beacon, ask):
    record = beacon.store.record("attempt")
    if not isinstance(record, dict) or "attempt_id" not in record:
        record = None
    slots = beacon.slots
    if beacon.cause == _POWER_ON and beacon.store.number("bad_slot"):
        beacon.store.put("bad_slot", None)  # flash that failed once may have been the supply
    if slots.on_trial():
        await _trial(beacon, record, ask)
        return
    if record:
        entries = slots.entries()
        # Armed, but only the interpreter was restarted: go on where the reset was due.
        if beacon.cause == _SOFT and slots.armed():
            machine.reset()
        verdict = trial.verdict(
            record,
            entries,
            slots.running,
            slots.count,
            beacon.cause,
            beacon.journal.since(record.get("journal", 0)),
        )
        if verdict:
            _conclude(beacon, record, verdict)
    slots.unarm()


# Writes an attempt's end down: from here on it is a report that has to arrive.
def _conclude(beacon, record, verdict):
    record["status"] = verdict.status
    record["trials"] = verdict.trials
    if verdict.status == "success":
        _raise_floor(beacon)
        _remember(beacon, record)
    else:
        record["stage"] = "boot"
        record["code"] = verdict.code
        record["detail"] = clip(verdict.detail, 160)
        if verdict.guilty():
            # The journal first: should the power fail now, the reset cause is gone with it.
            beacon.journal.write("boot", verdict.code, verdict.detail)
            known.remember(beacon.store, record["checksum"])
    beacon.store.put("attempt", record)


def _raise_floor(beacon):
    floor = beacon.store.text("floor")
    try:
        if floor and versions.compare(beacon.version, floor) <= 0:
            return
    except ValueError:
        pass  # an unreadable floor protects nothing: replaced below
    try:
        beacon.store.put("floor", beacon.version)
    except OSError as error:
        beacon.journal.write("floor", "not_stored", str(error))


# A release on trial is seen through here: confirmed, or reset.
async def _trial(beacon, record, ask):
    store = beacon.store
    begun = time.ticks_ms()
    deadline = 1000 * store.policy("trial_s")
    exchanged = refused = False
    tries = 0
    next_try = begun
    while True:
        await asyncio.sleep_ms(_LOOK)
        now = time.ticks_ms()
        if beacon.wifi.up() and not exchanged and time.ticks_diff(now, next_try) >= 0:
            exchanged, refused = await _exchange(ask)
            pause = schedule.backoff(min(tries, 4), store.policy("backoff_ms"))
            next_try = time.ticks_add(time.ticks_ms(), pause)
            tries += 1
        late = time.ticks_diff(time.ticks_ms(), begun) > deadline
        decision, missing = trial.health(
            beacon.radio.fit(),
            beacon.fit(),
            beacon.wifi.up(),
            exchanged,
            refused,
            late,
            store.policy("offline_ok"),
        )
        if decision == trial.CONFIRM:
            break
        if decision == trial.FAIL:
            beacon.journal.write("boot", "self_test", missing)
            machine.reset()
    if record and record.get("status") == "rebooting":
        if record.get("slot") == beacon.slots.running:
            record["trials"] = beacon.slots.trials()
        else:
            _rescued(beacon, record)
    elif store.number("crashes") >= _RESCUE:
        await _crashed(beacon, record)
    if not beacon.slots.confirm():
        beacon.journal.write("boot", "self_test", "otadata would not confirm")
        machine.reset()
    _raise_floor(beacon)
    if record and record.get("status") == "rebooting":
        record["status"] = "success"
        _remember(beacon, record)
        store.put("attempt", record)
    store.put("crashes", None)
    beacon.announce()
    if missing:
        beacon.journal.write("trial", "unconfirmed", missing)


# Which attempt brought the release that runs, for as long as it does: its record goes when the
# success has arrived, and a release that crashes later is told of under it.
def _remember(beacon, record):
    kept = {}
    for name in ("attempt_id", "firmware_id", "version", "previous", "checksum"):
        kept[name] = record.get(name)
    try:
        beacon.store.put("confirmed", kept)
    except OSError as error:
        print("attempt: not remembered:", error)


# The release of this attempt confirmed itself and crashed until stage 0 gave up on it. Said before
# the trial ends: afterwards nothing would tell why we run.
def _rescued(beacon, record):
    _conclude(beacon, record, trial.Verdict("rolled_back", "crash", "rescued", 1))


# No update brought us here but stage 0, because the other slot's release crashes. Its success has
# been told, or is about to be: it is taken back, under the attempt that it came by.
async def _crashed(beacon, record):
    store = beacon.store
    crashed = beacon.slots.other()
    if crashed is None:
        return
    checksum = await beacon.slots.digest(crashed)
    if not record:
        record = store.record("confirmed")
    elif record.get("status") != "success":
        record = None  # of another attempt
    if isinstance(record, dict) and checksum and record.get("checksum") == checksum:
        _rescued(beacon, record)
    known.remember(store, checksum)


# Can this release talk to the orchestrator? (exchanged, refused)
async def _exchange(ask):
    try:
        status, _, _ = await ask("trial")
    except HttpError as error:
        print("trial:", error.code, error.detail)
        return False, error.refused
    return status in (200, 204), 400 <= status < 500
