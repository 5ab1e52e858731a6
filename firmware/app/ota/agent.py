# The update agent: after settle.py has found out what this boot is, it polls for ever. It decides
# nothing by itself: when, what and whether are answered by schedule.py and the attempt in
# install.py.

import gc
import sys
import time

import machine
from event import AutoResetEvent
from micropython import const
from modules import unload
from net import clock
from net.api import Unsealed
from net.http import HttpError
from wire.refused import Refused

from ota import report, schedule
from ota.slots import FlashError

_UNREADY = const(5)  # s between looks for credentials
_PATIENCE = const(60000)  # ms for WiFi before a cycle is given up
_TELLINGS = const(6)  # of what is due, before there is a poll without it
_FINAL = const(("success", "failed", "rolled_back"))


# A number of seconds that has to pass, whatever happens meanwhile. Asked at every poll, so that the
# ticks do not wrap unseen.
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
        self._failed_attempts = 0  # attempts in a row without the release
        self._attempt_pause = Pause()  # after them: no attempt begins
        self._untaken_reports = 0  # reports in a row that were not taken
        self._report_pause = Pause()  # after them: the orchestrator has heard it often enough
        self._stranger_journalled = False  # has a stranger's answer been written down?
        self._failed_polls = 0  # cycles in a row without an orchestrator
        self._boot_reported = False  # has it heard from this boot?
        self._unsaved_record = None  # an attempt's end that NVS would not take
        self._reported_attempt = None  # the attempt whose end the orchestrator has
        self._out_of_memory = False  # did an attempt not find the memory it needs?
        self._wake = AutoResetEvent()
        self.poll_requests = self._round = 0  # by whoever provisions; answered by the round
        self.last_poll_result = "none"  # how the last poll went, for whoever provisions

    # Credentials were written: ask at once. What a round that is under way finds out belongs to
    # the old ones.
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
        from ota import boot_outcome

        self._unsaved_record = await boot_outcome.resolve_boot_outcome(beacon, self._request_offer)
        loaded = boot_outcome.MODULES
        boot_outcome = None
        unload(loaded)
        loaded = None
        record = report.load_record(beacon.store)
        if record and record.get("status") in ("failed", "rolled_back"):
            self._count_failure()  # its pause holds across a reset, too
        while True:
            self._round = self.poll_requests
            self._attempt_pause.seconds_left()  # or it wraps while nothing is offered
            try:
                pause = await self._poll_once()
                self._failed_polls = 0
            except HttpError as error:
                self._set_poll_result("refused" if error.refused else error.code)
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

    # Somebody answers who is not the orchestrator: written down once, until that was delivered. His
    # words are his to choose, and neither NVS nor the other entries are his to wear out.
    def _journal_stranger(self, error):
        if isinstance(error, Unsealed) and error.refused and not self._stranger_journalled:
            self._stranger_journalled = True
            self._beacon.journal.write("answer", "unsealed", error.detail)

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

    # One round: deliver what is due, ask for work, do it. Returns seconds to the next round.
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
        poll_after_s = doc.get("poll_after_s")
        wait = schedule.seconds_until_install(
            doc, clock.utc(), store.text("window"), store.number("utc_off")
        )
        if wait:
            return schedule.poll_delay(min(wait, poll_after_s or default), default)
        rest = self._attempt_pause.seconds_left()
        if rest:  # a poll between the times, because of a report or of new credentials
            return schedule.poll_delay(rest, default)
        if not await self._install(doc):
            self._count_failure()
        self._reset_if_out_of_memory()
        await self._deliver_report()
        pause = schedule.poll_delay(
            poll_after_s, default, self._failed_attempts, store.policy("retry_s")
        )
        # What jitter() leaves of it is no less than the rest.
        return pause + pause // 3 + 1 if self._attempt_pause.seconds_left() else pause

    # An attempt ended without the release: the next one waits, whatever else happens.
    def _count_failure(self):
        self._failed_attempts += 1
        self._attempt_pause.begin(
            schedule.failure_pause(self._failed_attempts, self._beacon.store.policy("retry_s"))
        )
        self._untaken_reports = 0
        self._report_pause.end()

    # A heap in pieces does not heal by itself. What there is to say lies in NVS, and is said after
    # the reset; where NVS would not take it, before.
    def _reset_if_out_of_memory(self):
        if self._out_of_memory and not self._unsaved_record:
            machine.reset()

    # An attempt. Returns only without the release: False when it failed, True when it was called
    # off. Whatever went wrong is written down before it is reported.
    async def _install(self, offer):
        from ota import install

        loaded = install.MODULES
        beacon = self._beacon
        attempt = install.Install(beacon, self._reporter, offer)
        stage = None
        try:
            await attempt.run()
        except install.AttemptCancelled:
            pass  # the orchestrator has ended it
        except Refused as error:
            stage, code, detail = "verify", error.code, error.detail
        except FlashError as error:
            stage, code, detail = "flash", error.code, error.detail
        except HttpError as error:
            stage, code, detail = "download", error.code, error.detail
        except Exception as error:
            from describe import describe_error

            sys.print_exception(error)
            stage, code, detail = "boot", "crash", describe_error(error)
            self._out_of_memory = isinstance(error, MemoryError)
        if stage:
            attempt.record["stage"] = stage
            attempt.record["code"] = code
            attempt.record["detail"] = report.attempt_detail(detail)
            try:
                attempt.save_status("failed")
            except FlashError as error:
                self._unsaved_record = attempt.record  # said from here, as long as the power lasts
                print("attempt:", error.detail)
            beacon.journal.write(stage, code, detail)
            beacon.radio.show_failure()
        else:
            beacon.store.try_put("attempt", None)
            beacon.radio.set_progress(None)
        attempt = install = None
        unload(loaded)
        return not stage

    # The end of an attempt, until it is acknowledged; else the boot and the journal, once. It goes
    # before the poll, which without it would be taken for the end by itself. But it must not stand
    # in the way for ever: when it was said often enough the beacon polls all the same, and the next
    # attempt's record takes the place of the last one's. A report that the orchestrator itself
    # refuses is said again after pauses that grow; a stranger's refusal is as good as silence.
    async def _deliver_report(self):
        if self._report_pause.seconds_left():
            return
        beacon = self._beacon
        record = self._unsaved_record or report.load_record(beacon.store)
        final = record and record.get("status") in _FINAL
        attempt_id = record.get("attempt_id") if final else None
        if final and attempt_id == self._reported_attempt:
            final = False  # NVS does not give it up: it is reported once
        if not final and self._boot_reported and not beacon.journal.entries_since():
            return
        status = record["status"] if final else "idle"
        try:
            await self._reporter.send(self._reporter.build(status, record if final else None))
        except HttpError as error:
            self._untaken_reports += 1
            if self._untaken_reports < _TELLINGS:
                raise
            print("report:", status, error.code, error.detail)
            self._journal_stranger(error)
            if error.status:
                retry = beacon.store.policy("retry_s")
                self._report_pause.begin(
                    schedule.failure_pause(self._untaken_reports - _TELLINGS + 1, retry)
                )
            return
        if final:
            self._unsaved_record = None
            self._reported_attempt = attempt_id
            beacon.store.try_put("attempt", None)
        self._boot_reported = True
        self._stranger_journalled = False
        self._untaken_reports = 0


# The field that makes an offer unusable, None for a good one.
def _malformed_field(doc):
    from wire import offer

    try:
        offer.check_offer(doc)
    except offer.OfferError as error:
        return error.field
    finally:
        offer = None
        unload("wire.offer wire.versions")
    return None
