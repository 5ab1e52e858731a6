# Resolves what happened at the previous boot, once in each boot. One of three things:
#
# * an attempt has ended, and its end has to be reported;
# * this release is on trial, and its health check has to be run;
# * nothing new.
#
# trial.py makes the decisions; the agent unloads the modules afterwards.

import asyncio
import time
from binascii import hexlify

import machine
from crypto.hmac import hmac_sha256
from micropython import const
from net import clock
from net.api import Unsealed, is_clock_skew
from net.http import HttpError
from wire import versions

from ota import denylist, report, schedule, trial

_LOOK = const(500)  # ms between two health checks of a release on trial
_SOFT = const(5)
_POWER_ON = const(1)
_RESCUE = const(8)  # crashes after which stage 0 tries another slot


# `ask(state)` polls the orchestrator. Returns the record of an attempt whose end NVS did not take,
# so that the agent can report it from RAM; otherwise None.
async def resolve_boot_outcome(beacon, ask):
    record = report.load_record(beacon.store)
    slots = beacon.slots
    if beacon.reset_cause == _POWER_ON and beacon.store.number("bad_slot"):
        beacon.store.try_put("bad_slot", None)  # the power supply may have been the cause
    if slots.is_on_trial():
        return await _run_trial(beacon, record, ask)
    unsaved = None
    if record:
        entries = slots.entries()
        # Armed, but only the interpreter was restarted: make the reset that was due.
        if beacon.reset_cause == _SOFT and slots.is_armed():
            machine.reset()
        verdict = trial.diagnose_previous_attempt(
            record,
            entries,
            slots.running,
            slots.count,
            beacon.reset_cause,
            beacon.journal.entries_since(_armed_entry(record)),
        )
        if verdict and not _conclude(beacon, record, verdict):
            unsaved = record
    try:
        slots.disarm()
    except OSError as error:
        beacon.journal.write("flash", "erase", "otadata: %s" % error)
    return unsaved


# Stores an attempt's end in its record, which the agent reports until it is acknowledged. False
# when NVS did not take it.
def _conclude(beacon, record, verdict):
    record["status"] = verdict.status
    record["trials"] = verdict.trials
    if verdict.status == "success":
        _raise_floor(beacon)
        _remember_confirmed(beacon, record)
    else:
        record["stage"] = "boot"
        record["code"] = verdict.code
        record["detail"] = report.attempt_detail(verdict.detail)
        if verdict.image_at_fault():
            # The journal comes first: if the power fails now, the reset cause is lost.
            beacon.journal.write("boot", verdict.code, verdict.detail)
            denylist.add(beacon.store, record["checksum"])
        elif verdict.status == "rolled_back":
            record["acquitted"] = True
    return beacon.store.try_put("attempt", record)


def _raise_floor(beacon):
    floor = beacon.store.text("floor")
    try:
        if floor and versions.compare(beacon.version, floor) <= 0:
            return
    except ValueError:
        pass  # an unreadable floor protects nothing, and is replaced
    try:
        beacon.store.put("floor", beacon.version)
    except OSError as error:
        beacon.journal.write("floor", "not_stored", str(error))


# Runs the trial of the running release until it is confirmed, or resets the chip.
async def _run_trial(beacon, record, ask):
    store = beacon.store
    begun = time.ticks_ms()
    deadline = 1000 * store.policy("trial_s")
    exchanged = refused = False
    kept = True
    strange = ""  # detail of the last answer that was not authentic
    tries = 0
    next_try = begun
    asked = beacon.agent.poll_requests
    if _is_own_attempt(record, beacon) and record["version"] != beacon.version:
        # A release without its signed version, or with an old one, would never be updated again.
        _fail_trial(beacon, record, "calls itself " + beacon.version)
    while True:
        await asyncio.sleep_ms(_LOOK)
        now = time.ticks_ms()
        if asked != beacon.agent.poll_requests:  # other credentials: at once
            asked = beacon.agent.poll_requests
            tries = 0
            next_try = now
        if beacon.wifi.is_up() and not exchanged and time.ticks_diff(now, next_try) >= 0:
            exchanged, refused, strange = await _try_exchange(ask)
            pause = schedule.retry_pause(min(tries, 4), store.policy("backoff_ms"))
            next_try = time.ticks_add(time.ticks_ms(), pause)
            tries += 1
        late = time.ticks_diff(time.ticks_ms(), begun) > deadline
        decision, missing = trial.check_health(
            beacon.radio.is_healthy(),
            beacon.is_healthy(),
            beacon.wifi.is_up(),
            exchanged,
            refused,
            late,
            store.policy("offline_ok"),
        )
        if missing == trial.AWAY and strange:
            missing += ": " + strange
        if decision == trial.CONFIRM:
            break
        if decision == trial.FAIL:
            _fail_trial(beacon, record, missing)
    if record and record.get("status") == "rebooting":
        if _is_own_attempt(record, beacon):
            record["trials"] = beacon.slots.trial_number()
        else:
            # The armed release confirmed itself, then crashed until stage 0 gave this one a trial.
            # That is stored before the trial ends: later nothing would tell why this release runs.
            said = beacon.journal.entries_since(_armed_entry(record))
            verdict = trial.diagnose_rescue(record, beacon.slots.other_slot(), said)
            kept = _conclude(beacon, record, verdict)
    crashes = store.number("crashes")
    if crashes >= _RESCUE and not (record and record.get("status") == "rebooting"):
        undone = await _withdraw_success(beacon, record)
        if undone:
            record = undone
            kept = _conclude(beacon, record, trial.diagnose_crash(beacon.journal.entries_since(0)))
    # Cleared before the trial ends: the crashes were another release's, and must not count when
    # this one crashes.
    beacon.clear_crash_count()
    if not beacon.slots.confirm():
        _fail_trial(beacon, record, trial.UNCONFIRMED)
    _raise_floor(beacon)
    if record and record.get("status") == "rebooting":
        record["status"] = "success"
        _remember_confirmed(beacon, record)
        kept = store.try_put("attempt", record)
    beacon.advertise_status()
    if missing:
        beacon.journal.write("trial", "unconfirmed", missing)
    return None if kept else record


# Whether this attempt installed the running release.
def _is_own_attempt(record, beacon):
    return record and record.get("slot") == beacon.slots.running


def _fail_trial(beacon, record, why):
    beacon.journal.write("boot", "self_test", why, _armed_entry(record))
    machine.reset()


# Number of the newest journal entry when the slot was armed; later entries belong to the trial.
def _armed_entry(record):
    seq = record.get("journal") if record else 0
    return seq if isinstance(seq, int) else 0


# Stores which attempt installed the running release. The attempt's record is erased when its
# success was acknowledged; if the release crashes later, that is reported under this attempt.
def _remember_confirmed(beacon, record):
    kept = {}
    for name in ("attempt_id", "firmware_id", "version", "previous", "checksum"):
        kept[name] = record.get(name)
    beacon.store.try_put("confirmed", kept)


# Stage 0 has given this release a trial because the other slot's release kept crashing. That image
# is denied, and its success, reported or not, is withdrawn. Returns the record of the attempt that
# installed it, None when that attempt is unknown.
async def _withdraw_success(beacon, record):
    crashed = beacon.slots.other_slot()
    if crashed is None:
        return None
    checksum = await beacon.slots.digest(crashed)
    denylist.add(beacon.store, checksum)
    if not record:
        record = report.load_record(beacon.store, "confirmed")
    elif record.get("status") != "success":
        return None  # this record belongs to another attempt
    if record and checksum and record.get("checksum") == checksum:
        return record
    return None


# Tries to talk to the orchestrator. Returns (exchanged, refused, detail of an unauthenticated
# answer). Only a sealed answer counts as a refusal, with two exceptions: refusals that a third
# party can cause by delivering a request late, twice or in part, and a `clock_skew` that tells a
# time which no release would accept.
async def _try_exchange(ask):
    try:
        status, answer, _ = await ask("trial")
    except Unsealed as error:
        print("trial:", error.detail)
        return False, not can_sign(), error.detail
    except HttpError as error:
        print("trial:", error.code, error.detail)
        return False, False, ""
    refused = 400 <= status < 500 and status not in (408, 429)
    if status == 401:
        refused = is_clock_skew(answer) and clock.is_plausible(answer.get("server_time"))
    return status in (200, 204), refused, ""


# Whether this release computes HMAC correctly (RFC 4231, test case 2). If not, every answer looks
# unauthenticated to it.
def can_sign():
    mac = hmac_sha256(b"Jefe", b"what do ya want for nothing?")
    return hexlify(mac) == b"5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
