# What this boot is: the end of an attempt that is to be told, a release on trial that is to be seen
# through its health check, or nothing new. Runs once and is forgotten. trial.py decides.

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

# All that is loaded for it and by no other module of an idle beacon.
MODULES = "ota.boot_outcome ota.trial ota.denylist wire.versions ota.boot_slot ota.image"

_LOOK = const(500)  # ms between looks at a release on trial
_SOFT = const(5)
_POWER_ON = const(1)
_RESCUE = const(8)  # crashes after which stage 0 tries another slot


# `ask(state)` asks the orchestrator for work. Returns the record of an attempt whose end NVS did
# not take, so that it is reported all the same; else None.
async def resolve_boot_outcome(beacon, ask):
    record = report.load_record(beacon.store)
    slots = beacon.slots
    if beacon.reset_cause == _POWER_ON and beacon.store.number("bad_slot"):
        beacon.store.try_put("bad_slot", None)  # flash that failed once may have been the supply
    if slots.is_on_trial():
        return await _run_trial(beacon, record, ask)
    unsaved = None
    if record:
        entries = slots.entries()
        # Armed, but only the interpreter was restarted: go on where the reset was due.
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


# Writes an attempt's end down: from here on it is a report that has to arrive. False when NVS did
# not take it.
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
            # The journal first: should the power fail now, the reset cause is gone with it.
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
        pass  # an unreadable floor protects nothing: replaced below
    try:
        beacon.store.put("floor", beacon.version)
    except OSError as error:
        beacon.journal.write("floor", "not_stored", str(error))


# A release on trial is seen through here: confirmed, or reset.
async def _run_trial(beacon, record, ask):
    store = beacon.store
    begun = time.ticks_ms()
    deadline = 1000 * store.policy("trial_s")
    exchanged = refused = False
    kept = True
    strange = ""  # what a stranger answered last
    tries = 0
    next_try = begun
    asked = beacon.agent.poll_requests
    if _is_own_attempt(record, beacon) and record["version"] != beacon.version:
        # Not what was signed: what runs under no version, or an old one, is never updated again.
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
            beacon.services_healthy(),
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
            # The release that was armed confirmed itself and crashed until stage 0 gave up on it.
            # Said before the trial ends: afterwards nothing would tell why we run.
            said = beacon.journal.entries_since(_armed_entry(record))
            verdict = trial.diagnose_rescue(record, beacon.slots.other_slot(), said)
            kept = _conclude(beacon, record, verdict)
    crashes = store.number("crashes")
    if crashes >= _RESCUE and not (record and record.get("status") == "rebooting"):
        undone = await _withdraw_success(beacon, record)
        if undone:
            record = undone
            kept = _conclude(beacon, record, trial.diagnose_crash(beacon.journal.entries_since(0)))
    # Before the trial ends: what has crashed so far was another release, and must not count when
    # this one crashes once.
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


# Is this the attempt that brought the release which runs?
def _is_own_attempt(record, beacon):
    return record and record.get("slot") == beacon.slots.running


def _fail_trial(beacon, record, why):
    beacon.journal.write("boot", "self_test", why, _armed_entry(record))
    machine.reset()


# The newest journal entry when the slot was armed: what comes after it is the trial's.
def _armed_entry(record):
    seq = record.get("journal") if record else 0
    return seq if isinstance(seq, int) else 0


# Which attempt brought the release that runs, for as long as it does: its record goes when the
# success has arrived, and a release that crashes later is told of under it.
def _remember_confirmed(beacon, record):
    kept = {}
    for name in ("attempt_id", "firmware_id", "version", "previous", "checksum"):
        kept[name] = record.get(name)
    beacon.store.try_put("confirmed", kept)


# No update brought us here but stage 0, because the other slot's release crashes. It is not tried
# again, and its success, which has been told or is about to be, is taken back under the attempt
# that it came by: the record to conclude, None when nobody knows that attempt.
async def _withdraw_success(beacon, record):
    crashed = beacon.slots.other_slot()
    if crashed is None:
        return None
    checksum = await beacon.slots.digest(crashed)
    denylist.add(beacon.store, checksum)
    if not record:
        record = report.load_record(beacon.store, "confirmed")
    elif record.get("status") != "success":
        return None  # of another attempt
    if record and checksum and record.get("checksum") == checksum:
        return record
    return None


# Can this release talk to the orchestrator? (exchanged, refused, a stranger's words). Only what the
# orchestrator sealed counts as its refusal: whoever else answers at its address says nothing about
# this release. Nor does a sealed refusal that somebody in between can bring about by sending a
# request late, twice or in part; nor does one that is told a time which no release could take.
async def _try_exchange(ask):
    try:
        status, answer, _ = await ask("trial")
    except Unsealed as error:
        print("trial:", error.detail)
        return False, not _can_sign(), error.detail
    except HttpError as error:
        print("trial:", error.code, error.detail)
        return False, False, ""
    refused = 400 <= status < 500 and status not in (408, 429)
    if status == 401:
        refused = is_clock_skew(answer) and clock.is_plausible(answer.get("server_time"))
    return status in (200, 204), refused, ""


# A release that cannot sign meets answers without a right mac, too: RFC 4231, test case 2.
def _can_sign():
    mac = hmac_sha256(b"Jefe", b"what do ya want for nothing?")
    return hexlify(mac) == b"5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
