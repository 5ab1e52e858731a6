# The update agent: after settle.py has found out what this boot is, it polls for ever. It decides
# nothing by itself: when, what and whether are answered by schedule.py and the attempt in
# install.py.

import gc
import sys

import machine
from event import AutoResetEvent
from lazy import forget
from micropython import const
from net import clock
from net.api import Unsealed
from net.http import HttpError
from wire.refused import Refused
from wire.shapes import clip

from ota import schedule
from ota.report import Reporter
from ota.slots import FlashError

_UNREADY = const(5)  # s between looks for credentials
_PATIENCE = const(60000)  # ms for WiFi before a cycle is given up
_FINAL = ("success", "failed", "rolled_back")


class Agent:
    def __init__(self, beacon):
        self._beacon = beacon
        self._reporter = Reporter(beacon)
        self._fails = 0  # attempts in a row without the release
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
        from ota import settle

        self._unsaved = await settle.run(beacon, self._ask)
        settle = None
        forget("ota.settle", "ota.trial", "ota.known", "wire.versions")
        while True:
            self._round = self.asked
            try:
                pause = await self._cycle()
                self._misses = 0
            except HttpError as error:
                self._say("refused" if error.refused else error.code)
                if isinstance(error, Unsealed) and error.refused:
                    beacon.journal.write("answer", "unsealed", error.detail)
                pause = schedule.poll_delay(5 << min(self._misses, 10), 0)
                pause = min(pause, beacon.store.policy("poll_s"))
                self._misses += 1
                print("orchestrator:", error.code, error.detail, "- again in", pause)
            gc.collect()
            await self._wake.wait_ms(schedule.jitter(1000 * pause))

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
        status, offer, retry = await self._ask("valid")
        default = beacon.store.policy("poll_s")
        if status not in (200, 204):
            raise HttpError("http", "status %d" % status, status < 500)
        self._say("ok")
        if status == 204:
            self._fails = 0
            return schedule.poll_delay(retry, default)
        return await self._consider(offer, default)

    async def _consider(self, doc, default):
        beacon = self._beacon
        store = beacon.store
        field = _malformed(doc)
        if field:
            beacon.journal.write("offer", "malformed", field)
            return default
        asked = doc.get("poll_after_s")
        wait = schedule.wait(doc, clock.utc(), store.text("window"), store.number("utc_off"))
        if wait:
            return schedule.poll_delay(min(wait, asked or default), default)
        if not await self._install(doc):
            self._fails += 1
        await self._deliver()
        if self._crowded:
            machine.reset()  # a heap in pieces does not heal by itself
        return schedule.poll_delay(asked, default, self._fails, store.policy("retry_s"))

    # An attempt. Returns only without the release: False when it failed, True when it was called
    # off. Whatever went wrong is written down before it is reported.
    async def _install(self, offer):
        from ota import install

        beacon = self._beacon
        attempt = install.Install(beacon, self._reporter, offer)
        stage = None
        try:
            await attempt.run()
        except install.Over:
            print("attempt called off")
        except Refused as error:
            stage, code, detail = "verify", error.code, error.detail
        except FlashError as error:
            stage, code, detail = "flash", error.code, error.detail
        except HttpError as error:
            stage, code, detail = "download", error.code, error.detail
        except Exception as error:
            from supervise import describe

            sys.print_exception(error)
            stage, code, detail = "boot", "crash", describe(error)
            self._crowded = isinstance(error, MemoryError)
        if stage:
            attempt.record["stage"] = stage
            attempt.record["code"] = code
            attempt.record["detail"] = clip(detail, 160)
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
        forget("ota.known", "ota.verify", "crypto.pss")
        forget("wire.manifest", "wire.versions")
        forget("ota.download", "ota.writer", "ota.bootable", "ota.decrypt")
        forget("crypto.ctr", "crypto.hkdf")
        forget("ota.install")
        return not stage

    # The end of an attempt, until it is acknowledged; else the boot and the journal, once.
    async def _deliver(self):
        beacon = self._beacon
        record = self._unsaved or beacon.store.record("attempt")
        due = isinstance(record, dict) and record.get("status") in _FINAL
        # A record that NVS does not give up is reported once.
        if due and record["attempt_id"] != self._reported:
            await self._reporter.send(self._reporter.build(record["status"], record))
            self._unsaved = None
            self._reported = record["attempt_id"]
            beacon.store.try_put("attempt", None)
        elif self._greeted and not beacon.journal.since():
            return
        else:
            await self._reporter.send(self._reporter.build("idle"))
        self._greeted = True


# The field that makes an offer unusable, None for a good one.
def _malformed(doc):
    from wire import offer

    try:
        offer.check(doc)
    except offer.OfferError as error:
        return error.field
    finally:
        offer = None
        forget("wire.offer", "wire.versions")
    return None
