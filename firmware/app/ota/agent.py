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
    def left(self):
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
        self._fails = 0  # attempts in a row without the release
        self._rest = Pause()  # after them: no attempt begins
        self._untaken = 0  # reports in a row that were not taken
        self._silence = Pause()  # after them: the orchestrator has heard it often enough
        self._strange = False  # has a stranger's answer been written down?
        self._misses = 0  # cycles in a row without an orchestrator
        self._greeted = False  # has it heard from this boot?
        self._unsaved = None  # an attempt's end that NVS would not take
        self._reported = None  # the attempt whose end the orchestrator has
        self._crowded = False  # did an attempt not find the memory it needs?
        self._wake = AutoResetEvent()
        self.asked = self._round = 0  # by whoever provisions; answered by the round
        self.word = "none"  # how the last poll went, for whoever provisions

    # Credentials were written: ask at once. What a round that is under way finds out belongs to
    # the old ones.
    def poke(self):
        self.asked += 1
        self.word = "none"
        self._wake.set()

    def _say(self, word):
        if self._round == self.asked:
            self.word = word

    async def run(self):
        beacon = self._beacon
        if not beacon.image:
            beacon.image = await beacon.slots.digest()
        from ota import boot_outcome

        self._unsaved = await boot_outcome.resolve_boot_outcome(beacon, self._ask)
        boot_outcome = None
        unload("ota.boot_outcome", "ota.trial", "ota.denylist", "wire.versions", "ota.boot_slot", "ota.image")
        record = report.load_record(beacon.store)
        if record and record.get("status") in ("failed", "rolled_back"):
            self._failed()  # its pause holds across a reset, too
        while True:
            self._round = self.asked
            self._rest.left()  # or it wraps while nothing is offered
            try:
                pause = await self._cycle()
                self._misses = 0
            except HttpError as error:
                self._say("refused" if error.refused else error.code)
                self._stranger(error)
                pause = schedule.poll_delay(5 << min(self._misses, 10), 0)
                pause = min(pause, beacon.store.policy("poll_s"))
                self._misses += 1
                print("orchestrator:", error.code, error.detail, "- again in", pause)
            gc.collect()
            pause = schedule.add_jitter(1000 * pause)
            if self._silence.left():
                pause = min(pause, 1000 * self._silence.left())
            await self._wake.wait_ms(pause)

    # Somebody answers who is not the orchestrator: written down once, until that was delivered. His
    # words are his to choose, and neither NVS nor the other entries are his to wear out.
    def _stranger(self, error):
        if isinstance(error, Unsealed) and error.refused and not self._strange:
            self._strange = True
            self._beacon.journal.write("answer", "unsealed", error.detail)

    # -- polling

    def _ask(self, state):
        beacon = self._beacon
        target = "/firmwares/latest/%s?version=%s&image=%s&state=%s" % (
            beacon.device_type,
            beacon.version.replace("+", "%2B"),
            beacon.image,
            state,
        )
        return beacon.api.call("GET", target)

    # One round: deliver what is due, ask for work, do it. Returns seconds to the next round.
    async def _cycle(self):
        beacon = self._beacon
        if not beacon.api.ready():
            return _UNREADY
        if not await beacon.wifi.wait(_PATIENCE):
            return 0
        await self._deliver()
        self._refresh()
        status, offer, retry = await self._ask("valid")
        default = beacon.store.policy("poll_s")
        if status not in (200, 204):
            raise HttpError("http", "status %d" % status, status < 500)
        self._say("ok")
        if status == 204:
            self._fails = 0
            return schedule.poll_delay(schedule.cap_retry_after(retry, default), default)
        return await self._consider(offer, default)

    async def _consider(self, doc, default):
        beacon = self._beacon
        store = beacon.store
        field = _malformed_field(doc)
        if field:
            beacon.journal.write("offer", "malformed", field)
            return default
        asked = doc.get("poll_after_s")
        wait = schedule.seconds_until_install(doc, clock.utc(), store.text("window"), store.number("utc_off"))
        if wait:
            return schedule.poll_delay(min(wait, asked or default), default)
        rest = self._rest.left()
        if rest:  # a poll between the times, because of a report or of new credentials
            return schedule.poll_delay(rest, default)
        if not await self._install(doc):
            self._failed()
        self._refresh()
        await self._deliver()
        pause = schedule.poll_delay(asked, default, self._fails, store.policy("retry_s"))
        # What jitter() leaves of it is no less than the rest.
        return pause + pause // 3 + 1 if self._rest.left() else pause

    # An attempt ended without the release: the next one waits, whatever else happens.
    def _failed(self):
        self._fails += 1
        self._rest.begin(schedule.failure_pause(self._fails, self._beacon.store.policy("retry_s")))
        self._untaken = 0
        self._silence.end()

    # A heap in pieces does not heal by itself. What there is to say lies in NVS, and is said after
    # the reset; where NVS would not take it, before.
    def _refresh(self):
        if self._crowded and not self._unsaved:
            machine.reset()

    # An attempt. Returns only without the release: False when it failed, True when it was called
    # off. Whatever went wrong is written down before it is reported.
    async def _install(self, offer):
        from ota import install

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
            self._crowded = isinstance(error, MemoryError)
        if stage:
            attempt.record["stage"] = stage
            attempt.record["code"] = code
            attempt.record["detail"] = report.attempt_detail(detail)
            try:
                attempt.mark("failed")
            except FlashError as error:
                self._unsaved = attempt.record  # said from here, as long as the power lasts
                print("attempt:", error.detail)
            beacon.journal.write(stage, code, detail)
            beacon.radio.failed()
        else:
            beacon.store.try_put("attempt", None)
            beacon.radio.progress(None)
        attempt = install = None
        unload("ota.denylist", "ota.verify", "crypto.pss")
        unload("wire.manifest", "wire.versions")
        unload("ota.download", "ota.writer", "ota.bootable", "ota.decrypt", "ota.image")
        unload("crypto.ctr", "crypto.hkdf", "ota.boot_slot", "ota.acknowledged")
        unload("ota.install")
        return not stage

    # The end of an attempt, until it is acknowledged; else the boot and the journal, once. It goes
    # before the poll, which without it would be taken for the end by itself. But it must not stand
    # in the way for ever: when it was said often enough the beacon polls all the same, and the next
    # attempt's record takes the place of the last one's. A report that the orchestrator itself
    # refuses is said again after pauses that grow; a stranger's refusal is as good as silence.
    async def _deliver(self):
        if self._silence.left():
            return
        beacon = self._beacon
        record = self._unsaved or report.load_record(beacon.store)
        final = record and record.get("status") in _FINAL
        if final and record.get("attempt_id") == self._reported:
            final = False  # NVS does not give it up: it is reported once
        if not final and self._greeted and not beacon.journal.since():
            return
        status = record["status"] if final else "idle"
        try:
            await self._reporter.send(self._reporter.build(status, record if final else None))
        except HttpError as error:
            self._untaken += 1
            if self._untaken < _TELLINGS:
                raise
            print("report:", status, error.code, error.detail)
            self._stranger(error)
            if error.status:
                retry = beacon.store.policy("retry_s")
                self._silence.begin(schedule.failure_pause(self._untaken - _TELLINGS + 1, retry))
            return
        if final:
            self._unsaved = None
            self._reported = record.get("attempt_id")
            beacon.store.try_put("attempt", None)
        self._greeted = True
        self._strange = False
        self._untaken = 0


# The field that makes an offer unusable, None for a good one.
def _malformed_field(doc):
    from wire import offer

    try:
        offer.check_offer(doc)
    except offer.OfferError as error:
        return error.field
    finally:
        offer = None
        unload("wire.offer", "wire.versions")
    return None
