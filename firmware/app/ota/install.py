# One attempt at one release, from the offer to the reset: believe, download, write, check, arm. It
# is imported when there is an offer and forgotten when it failed, so that an idle beacon does not
# carry it. Every way out has a name: a refusal (verify), a flash error, a failed exchange
# (download), or Over when the orchestrator has ended the attempt.

import asyncio
import gc
import time

import machine
from lazy import forget
from micropython import const
from net import clock
from net.http import HttpError
from wire.refused import Refused

from ota import known, schedule
from ota.slots import SECTOR, FlashError, image_length

_TURN = const(8)  # ms after which the other tasks have their turn
_PROGRESS = const(10000)  # ms between progress reports
_QUIET = const(2)  # fruitless tries before Bluetooth has to be still
_FAREWELL = const(1000)  # ms in which the air says that the beacon reboots
REBOOTING = const(0xFF)


# The orchestrator says that there is nothing more to do for this attempt.
class Over(Exception):
    pass


class Install:
    def __init__(self, beacon, reporter, offer):
        self._beacon = beacon
        self._reporter = reporter
        self._offer = offer
        self._begun = time.ticks_ms()
        self._reported = self._begun
        self._percent = 0
        self.record = {
            "status": "downloading",
            "attempt_id": offer["attempt_id"],
            "firmware_id": offer["firmware_id"],
            "version": offer["version"],
            "previous": beacon.version,
            "checksum": offer["checksum"],
        }

    # Persists how far the attempt has come: what a boot that follows unannounced goes by. Without
    # that no attempt goes on.
    def mark(self, status):
        self.record["status"] = status
        self.record["duration_ms"] = time.ticks_diff(time.ticks_ms(), self._begun)
        try:
            self._beacon.store.put("attempt", self.record)
        except OSError as error:
            raise FlashError("write", "nvs: %s" % error)

    # Ends in a reset into the new release, or in the exception that says why not.
    async def run(self):
        self.mark("downloading")
        self._beacon.radio.progress(0)
        await self._tell("downloading", 0)
        fields = await self._believe()
        part, slot = await self._fetch(fields)
        if image_length(part) != fields["size"]:
            raise Refused("image", "core and app do not fill the release")
        self.record["bytes"] = fields["size"]
        self.mark("verifying")
        await self._insist("verifying")
        self.record["slot"] = slot
        self.record["journal"] = self._beacon.journal.head()
        self.mark("rebooting")
        await self._insist("rebooting")
        self._beacon.radio.progress(REBOOTING)
        await asyncio.sleep_ms(_FAREWELL)
        self._arm(slot)
        machine.reset()

    # Nothing is downloaded before this returns the signed manifest's fields.
    async def _believe(self):
        beacon = self._beacon
        if known.bad(beacon.store, self._offer["checksum"]):
            raise Refused("known_bad", "rolled back on this beacon before")
        from ota import verify

        fields = await verify.check(
            self._offer,
            beacon.device_type,
            beacon.version,
            beacon.store.text("floor") or None,
            clock.utc() or None,
            beacon.slots.max_room(),
            beacon.insecure,
        )
        beacon.heap()
        self._offer["manifest"] = verify = None
        forget("ota.verify", "wire.manifest", "wire.offer", "crypto.pss")
        return fields

    def _arm(self, slot):
        try:
            self._beacon.slots.arm(slot)
        except OSError as error:
            if error.errno == -5379:  # ESP_ERR_OTA_VALIDATE_FAILED: the core is not bootable
                raise Refused("image", str(error))
            raise FlashError("write", "otadata: %s" % error)

    # -- download

    # Into the first slot that takes it; returns (partition, slot). A slot whose flash fails is
    # remembered and not used again until the next power-on.
    async def _fetch(self, fields):
        beacon = self._beacon
        failed = None
        while True:
            bad = beacon.store.number("bad_slot")
            slots = beacon.slots.targets(fields["size"], bad)
            if not slots:
                raise failed or FlashError("no_slot", "bad slots: %x" % bad)
            part = beacon.slots.partition(slots[0])
            try:
                await self._into(part, fields)
                return part, slots[0]
            except FlashError as error:
                failed = error
                beacon.journal.write("flash", error.code, "slot %d: %s" % (slots[0], error.detail))
                try:
                    beacon.store.put("bad_slot", bad | 1 << slots[0])
                except OSError:
                    raise failed

    async def _into(self, part, fields):
        sealed = fields.get("encryption")
        decrypt = None
        digest = fields["checksum"]
        if sealed:
            from ota import decrypt as opener

            digest = sealed["ciphertext_sha256"]
            decrypt = opener.opener(fields, self._beacon.store.blob("fleet_key"))
        from ota.writer import Writer

        writer = Writer(part, fields["size"], decrypt)
        try:
            await self._persist(writer, digest)
        finally:
            self.record["bytes"] = writer.written
            paused = self._beacon.radio.resume()
            if paused:
                self.record["advertising_paused_ms"] = paused
        found = writer.digest()
        if found != fields["checksum"]:
            raise Refused("checksum", "flash holds " + found[:16])
        writer.close()

    # The whole image, over as many connections as it takes: pauses of 2, 4, 8, 16, 32 s between
    # tries that brought nothing, and an end to it all after five minutes.
    async def _persist(self, writer, digest):
        beacon = self._beacon
        budget = 1000 * beacon.store.policy("give_up_s")
        begun = time.ticks_ms()
        fruitless = 0
        while writer.written < writer.size:
            before = writer.written
            try:
                if before:
                    await writer.rehash()
                await self._stream(writer, digest, begun, budget)
            except HttpError as error:
                if error.status in (409, 410):
                    raise Over
                if error.code == "timeout" or 400 <= error.status < 500 and error.status != 429:
                    raise
                fruitless = 0 if writer.written > before else fruitless
                pause = schedule.backoff(fruitless, beacon.store.policy("backoff_ms"))
                if pause is None:
                    raise
                fruitless += 1
                pause = max(pause, 1000 * min(error.retry or 0, 3600))
                if time.ticks_diff(time.ticks_ms(), begun) + pause > budget:
                    raise HttpError("timeout", "%s, then %s" % (error.code, error.detail))
                print("download:", error.code, error.detail, "at", writer.written)
                if fruitless >= _QUIET and error.code in ("stall", "truncated", "connect"):
                    beacon.radio.pause()
                gc.collect()
                await asyncio.sleep_ms(pause)
                await beacon.wifi.wait(budget - time.ticks_diff(time.ticks_ms(), begun))

    async def _stream(self, writer, digest, begun, budget):
        beacon = self._beacon
        stall = 1000 * beacon.store.policy("stall_s")
        source = await beacon.api.download(
            self._offer["download_url"], digest, writer.written, stall
        )
        try:
            _range(source, writer, digest)
            buf = writer.buf
            left = writer.size - writer.written
            yielded = time.ticks_ms()
            while left:
                if left < SECTOR:
                    buf = memoryview(buf)[:left]
                got = await source.fill(buf)
                if got < len(buf):
                    raise HttpError("truncated", "ended %d bytes early" % (left - got))
                writer.write(got)
                left -= got
                now = time.ticks_ms()
                if time.ticks_diff(now, yielded) >= _TURN:
                    await asyncio.sleep_ms(0)
                    yielded = time.ticks_ms()
                percent = 100 * writer.written // writer.size
                if percent != self._percent:
                    self._percent = percent
                    await self._progress(writer, begun, budget)
            if await source.fill(buf[:1]):
                raise HttpError("http", "longer than the release")
        finally:
            source.close()

    # Another percent: on the air, now and then as a report, and is there time left?
    async def _progress(self, writer, begun, budget):
        percent = self._percent
        self._beacon.radio.progress(percent)
        now = time.ticks_ms()
        if time.ticks_diff(now, begun) > budget:
            raise HttpError("timeout", "given up after %d s" % (budget // 1000))
        if time.ticks_diff(now, self._reported) > _PROGRESS:
            self._reported = now
            self.record["bytes"] = writer.written
            await self._tell("downloading", percent)

    # -- reports

    # A report that may get lost, but not be refused.
    async def _tell(self, status, progress=None):
        try:
            taken = await self._reporter.send(self._reporter.build(status, self.record, progress))
        except HttpError as error:
            print("report:", error.code, error.detail)
            return
        if not taken:
            raise Over

    # A report that has to arrive before the next step: a halted rollout stops here.
    async def _insist(self, status):
        tries = 0
        while True:
            try:
                taken = await self._reporter.send(self._reporter.build(status, self.record))
                break
            except HttpError as error:
                pause = schedule.backoff(tries, self._beacon.store.policy("backoff_ms"))
                if pause is None:
                    raise HttpError(error.code, "report %s: %s" % (status, error.detail))
                tries += 1
                await asyncio.sleep_ms(pause)
        if not taken:
            raise Over


# The answer has to be the rest of this image and nothing else; a server that sends all of it
# makes the writer begin again.
def _range(source, writer, digest):
    first = writer.written
    tag = source.headers.get("etag")
    if tag and tag != '"%s"' % digest:
        raise HttpError("http", "another file: " + tag[:20])
    if source.status == 200:
        if first:
            writer.restart()
        first = 0
    else:
        want = "bytes %d-%d/%d" % (first, writer.size - 1, writer.size)
        found = source.headers.get("content-range")
        if not first or found != want:
            raise HttpError("http", "range %s" % found)
    length = source.length()
    if length is not None and length != writer.size - first:
        code = "truncated" if length < writer.size - first else "http"
        raise HttpError(code, "length %d, not %d" % (length, writer.size - first))
