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


# `ask(state)` asks the orchestrator for work. Returns the record of an attempt whose end NVS did
# not take, so that it is reported all the same; else None.
async def run(beacon, ask):
    record = beacon.store.record("attempt")
    if not isinstance(record, dict) or "attempt_id" not in record:
        record = None
    slots = beacon.slots
    if beacon.cause == _POWER_ON and beacon.store.number("bad_slot"):
        beacon.store.try_put("bad_slot", None)  # flash that failed once may have been the supply
    if slots.on_trial():
        return await _trial(beacon, record, ask)
    unsaved = None
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
        if verdict and not _conclude(beacon, record, verdict):
            unsaved = record
    try:
        slots.unarm()
    except OSError as error:
        beacon.journal.write("flash", "erase", "otadata: %s" % error)
    return unsaved


# Writes an attempt's end down: from here on it is a report that has to arrive. False when NVS did
# not take it.
def _conclude(beacon, record, verdict):
    record["status"] = verdict.status
    record["trials"] = verdict.trials
    if verdict.status == "success":
        _raise_floor(beacon)
    else:
        record["stage"] = "boot"
        record["code"] = verdict.code
        record["detail"] = clip(verdict.detail, 160)
        if verdict.guilty():
            # The journal first: should the power fail now, the reset cause is gone with it.
            beacon.journal.write("boot", verdict.code, verdict.detail)
            known.remember(beacon.store, record["checksum"])
    return beacon.store.try_put("attempt", record)


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
    kept = True
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
            # The release that was armed confirmed itself and crashed until stage 0 gave up on it.
            # Said before the trial ends: afterwards nothing would tell why we run.
            code, detail = _rescue(beacon.journal.since(record.get("journal", 0)))
            kept = _conclude(beacon, record, trial.Verdict("rolled_back", code, detail, 1))
    if not beacon.slots.confirm():
        beacon.journal.write("boot", "self_test", "otadata would not confirm")
        machine.reset()
    _raise_floor(beacon)
    if record and record.get("status") == "rebooting":
        record["status"] = "success"
        kept = store.try_put("attempt", record)
    elif store.number("crashes") >= _RESCUE:
        # No update brought us here but stage 0, because the other slot's release crashes.
        crashed = beacon.slots.other()
        if crashed is not None:
            known.remember(store, await beacon.slots.digest(crashed))
    beacon.forget_crashes()
    beacon.announce()
    if missing:
        beacon.journal.write("trial", "unconfirmed", missing)
    return None if kept else record


# What stage 0 wrote down when it gave up on the release that was armed: the code and detail of a
# report. Without an entry nothing tells a hang from a crash.
def _rescue(journal):
    for _, _, stage, code, detail in reversed(journal):
        if stage == "boot" and code == "rescue":
            code = "watchdog" if detail.endswith("watchdog") else "crash"
            return code, "rescued to " + detail
    return "crash", "rescued"


# Can this release talk to the orchestrator? (exchanged, refused)
async def _exchange(ask):
    try:
        status, _, _ = await ask("trial")
    except HttpError as error:
        print("trial:", error.code, error.detail)
        return False, error.refused
    return status in (200, 204), 400 <= status < 500
