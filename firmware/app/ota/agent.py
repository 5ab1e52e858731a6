# The update agent: resolves the outcome of the previous boot (boot_outcome.py), then polls the
# orchestrator for ever. schedule.py decides when to poll and to install; install.py carries out an
# attempt.

import gc
import time

import machine
from event import AutoResetEvent
from micropython import const
from modules import call, unload, use
from net import clock
from net.api import Unsealed
from net.http import HttpError
from wire.refused import Refused

from ota import report, schedule
from ota.slots import FlashError

_UNREADY = const(5)  # s between looks for credentials
_PATIENCE = const(60000)  # ms to wait for WiFi in one round
_REPORT_TRIES = const(6)  # reports tried before polling anyway
_FINAL = const(("success", "failed", "rolled_back"))


# A number of seconds that has to pass, whatever happens meanwhile. seconds_left() is called at
# every poll, so that the ticks cannot wrap around unnoticed.
class Pause:
    def __init__(self):
        self._ends = None

    def begin(self, seconds):
        self._ends = time.ticks_add(time.ticks_ms(), 1000 * seconds)

    def end(self):
        self._ends = None

    # Seconds, rounded up; 0 when it is over.
    def seconds_left(self):
        if self._ends is None:
            return 0
        left = time.ticks_diff(self._ends, time.ticks_ms())
        if left <= 0:
            self._ends = None
            return 0
        return (left + 999) // 1000


class Agent:
    def __init__(self, beacon):
        self._beacon = beacon
        self._reporter = report.Reporter(beacon)
        self._failed_attempts = 0  # consecutive failed install attempts; stretches the next poll
        self._attempt_pause = Pause()  # after a failed attempt: no other begins
        self._untaken_reports = 0  # consecutive reports that were not acknowledged
        self._report_pause = Pause()  # after many of them: no report is sent
        self._stranger_journalled = False  # a stranger's answer was journalled
        self._failed_polls = 0  # consecutive rounds without an answer of the orchestrator
        self._boot_reported = False  # a report of this boot was acknowledged
        self._unsaved_record = None  # an attempt's record whose end NVS did not take
        self._reported_attempt = None  # id of the attempt whose end was acknowledged
        self._out_of_memory = False  # an attempt failed for want of memory
        self._waiting_for = ""  # version of an offer that a window held back, journalled
        self._wake = AutoResetEvent()
        self.poll_requests = self._round = 0  # counts poll_now(); the round's request
        self.last_poll_result = "none"  # of the last poll, for STATE in provisioning

    # Polls at once: credentials were written. A round that is under way still uses the old ones, so
    # its result does not count.
    def poll_now(self):
        self.poll_requests += 1
        self.last_poll_result = "none"
        self._wake.set()

    def _set_poll_result(self, word):
        if self._round == self.poll_requests:
            self.last_poll_result = word

    async def run(self):
        beacon = self._beacon
        if not beacon.image_sha256:
            beacon.image_sha256 = await beacon.slots.digest()
        self._unsaved_record = await call(
            "ota.boot_outcome", "resolve_boot_outcome", beacon, self._request_offer
        )
        unload("ota.trial ota.denylist wire.versions ota.boot_slot ota.image")
        record = report.load_record(beacon.store)
        if record and record.get("status") in ("failed", "rolled_back"):
            self._count_failure()  # the pause after it also holds across a reset
        while True:
            self._round = self.poll_requests
            self._attempt_pause.seconds_left()  # or its ticks wrap while nothing is offered
            try:
                pause = await self._poll_once()
                self._failed_polls = 0
            except HttpError as error:
                refused = error.refused
                self._set_poll_result("refused" if refused is True else refused or error.code)
                self._journal_stranger(error)
                pause = schedule.poll_delay(5 << min(self._failed_polls, 10), 0)
                pause = min(pause, beacon.store.policy("poll_s"))
                self._failed_polls += 1
                print("orchestrator:", error.code, error.detail, "- again in", pause)
            gc.collect()
            pause = schedule.add_jitter(1000 * pause)
            if self._report_pause.seconds_left():
                pause = min(pause, 1000 * self._report_pause.seconds_left())
            await self._wake.wait_ms(pause)

    # Journals an answer that is not authentic, once until that entry was delivered: a stranger must
    # not be able to wear out NVS or to push other entries out of the ring.
    def _journal_stranger(self, error):
        if isinstance(error, Unsealed) and error.refused and not self._stranger_journalled:
            self._stranger_journalled = True
            code = "unsealed" if error.refused is True else error.refused
            self._beacon.journal.write("answer", code, error.detail)

    # -- polling

    def _request_offer(self, state):
        beacon = self._beacon
        target = "/firmwares/latest/%s?version=%s&image=%s&state=%s" % (
            beacon.device_type,
            beacon.version.replace("+", "%2B"),
            beacon.image_sha256,
            state,
        )
        return beacon.api.call("GET", target)

    # One round: deliver a due report, ask for an offer, install it. Returns seconds to the next
    # round.
    async def _poll_once(self):
        beacon = self._beacon
        if not beacon.api.can_sign():
            return _UNREADY
        if not await beacon.wifi.wait_until_up(_PATIENCE):
            return 0
        await self._deliver_report()
        self._reset_if_out_of_memory()
        status, offer, retry = await self._request_offer("valid")
        default = beacon.store.policy("poll_s")
        if status not in (200, 204):
            raise HttpError("http", "status %d" % status, status < 500)
        self._set_poll_result("ok")
        if status == 204:
            self._failed_attempts = 0
            return schedule.poll_delay(schedule.cap_retry_after(retry, default), default)
        return await self._handle_offer(offer, default)

    async def _handle_offer(self, doc, default):
        beacon = self._beacon
        store = beacon.store
        field = _malformed_field(doc)
        if field:
            beacon.journal.write("offer", "malformed", field)
            return default
        asked = doc.get("poll_after_s")
        wait = schedule.seconds_until_install(
            doc, clock.utc(), store.text("window"), store.number("utc_off")
        )
        if wait:
            # Once for each release, because NVS wears out and this comes at every poll.
            if self._waiting_for != doc["version"]:
                self._waiting_for = doc["version"]
                beacon.journal.write("offer", "window", "%s in %d s" % (doc["version"], wait))
            return schedule.poll_delay(min(wait, asked or default), default)
        rest = self._attempt_pause.seconds_left()
        if rest:  # this poll came early, because of a report or of new credentials
            return schedule.poll_delay(rest, default)
        if not await self._install(doc):
            self._count_failure()
        self._reset_if_out_of_memory()
        await self._deliver_report()
        pause = schedule.poll_delay(asked, default, self._failed_attempts, store.policy("retry_s"))
        # Long enough that what add_jitter() leaves of it covers the pause after a failed attempt.
        return pause + pause // 3 + 1 if self._attempt_pause.seconds_left() else pause

    # An attempt failed: no other begins before the pause is over.
    def _count_failure(self):
        self._failed_attempts += 1
        self._attempt_pause.begin(
            schedule.failure_pause(self._failed_attempts, self._beacon.store.policy("retry_s"))
        )
        self._untaken_reports = 0
        self._report_pause.end()

    # Only a reset repairs a fragmented heap. The attempt's record is in NVS and is reported after
    # the reset; a record that NVS did not take has to be reported before it.
    def _reset_if_out_of_memory(self):
        if self._out_of_memory and not self._unsaved_record:
            machine.reset()

    # Makes one attempt. A successful attempt ends in a reset, so this returns only without the
    # release: False when the attempt failed, True when the orchestrator cancelled it. A failure is
    # stored before it is reported.
    async def _install(self, offer):
        from ota import install

        beacon = self._beacon
        attempt = install.Install(beacon, self._reporter, offer)
        failure = None
        try:
            await attempt.run()
        except install.AttemptCancelled:
            pass  # there is no failure to report
        except Refused as error:
            failure = "verify", error.code, error.detail
        except Exception as error:
            self._out_of_memory = isinstance(error, MemoryError)
            # There may be no memory left for another module.
            failure = "boot", "crash", "MemoryError"
            if not self._out_of_memory:
                failure = use("describe", "classify", error)
        if failure:
            attempt.record["stage"], attempt.record["code"], detail = failure
            attempt.record["detail"] = report.attempt_detail(detail)
            try:
                attempt.save_status("failed")
            except FlashError as error:
                self._unsaved_record = attempt.record  # reported from RAM
                print("attempt:", error.detail)
            beacon.journal.write(*failure)
            beacon.radio.show_failure()
        else:
            beacon.store.try_put("attempt", None)
            beacon.radio.set_progress(None)
        attempt = install = None
        unload("ota.decrypt crypto.ctr crypto.hkdf ota.boot_slot ota.install")
        return not failure

    # Reports the end of an attempt until it is acknowledged; otherwise the boot and the journal,
    # once. The report comes before the poll, because a poll alone would be taken for the attempt's
    # end. After _REPORT_TRIES tries the beacon polls without it, so that a report can never block
    # updates; the next attempt's record then replaces this one. A report that the orchestrator
    # itself refuses is repeated after growing pauses; a stranger's refusal counts as no answer.
    async def _deliver_report(self):
        if self._report_pause.seconds_left():
            return
        beacon = self._beacon
        record = self._unsaved_record or report.load_record(beacon.store)
        final = record and record.get("status") in _FINAL
        attempt_id = record.get("attempt_id") if final else None
        if final and attempt_id == self._reported_attempt:
            final = False  # NVS did not erase the record: it is reported once in each boot
        if not final and self._boot_reported and not beacon.journal.entries_since():
            return
        status = record["status"] if record and final else "idle"
        try:
            await self._reporter.send(status, record if final else None)
        except HttpError as error:
            self._untaken_reports += 1
            if self._untaken_reports < _REPORT_TRIES:
                raise
            print("report:", status, error.code, error.detail)
            self._journal_stranger(error)
            if error.status:
                retry = beacon.store.policy("retry_s")
                self._report_pause.begin(
                    schedule.failure_pause(self._untaken_reports - _REPORT_TRIES + 1, retry)
                )
            return
        if final:
            self._unsaved_record = None
            self._reported_attempt = attempt_id
            beacon.store.try_put("attempt", None)
        self._boot_reported = True
        self._stranger_journalled = False
        self._untaken_reports = 0


# The name of the field that breaks the contract of an offer, None for a valid offer.
def _malformed_field(doc):
    try:
        use("wire.offer", "check_offer", doc)
    except ValueError as error:  # an OfferError
        return error.field
    finally:
        unload("wire.versions")
    return None
