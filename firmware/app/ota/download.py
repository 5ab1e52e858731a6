# Downloads the release into the first slot that erases, programs and reads back correctly, over as
# many connections as it takes: what of it is not in flash already. Imported only after the manifest
# has been verified, to save heap; what is needed before, between and after connections is imported
# for that only.

import asyncio
import time

from micropython import const
from modules import call
from net.http import HttpError
from wire.refused import Refused

from ota.slots import SECTOR, FlashError

_TURN = const(12)  # ms after which other tasks may run
_PROGRESS = const(10000)  # ms between progress reports


# Returns what Download.run() returns.
async def run(beacon, attempt, fields):
    fetched = await Download(beacon, attempt, fields).run()
    beacon.measure_heap()
    return fetched


class Download:
    # `fields` are those of the signed manifest.
    def __init__(self, beacon, attempt, fields):
        self.beacon = beacon
        self.attempt = attempt
        self._fields = fields
        self.size = fields["size"]
        self.digest = fields["checksum"]
        self.plan = b""  # where the bytes of each sector come from (ota/plan.py)
        # In the attempt's record and so in every report: bytes fetched, sectors kept and written.
        attempt.record["cost"] = [0, 0, 0]
        self._budget = 1000 * beacon.store.policy("give_up_s")
        self._begun = 0
        self._reported = time.ticks_ms()
        self.mark = 0  # bytes at which the next percent is reached

    # Returns the number of the slot and the image's head, which is not written yet: the rest of the
    # slot is the signed release, but does not boot. A slot whose flash fails is recorded and not
    # used again until the next power-on.
    async def run(self):
        beacon = self.beacon
        failed = None
        while True:
            bad = beacon.store.number("bad_slot")
            slots = beacon.slots.target_slots(self.size, bad)
            if not slots:
                raise failed or FlashError("no_slot", "bad slots: %x" % bad)
            part = beacon.slots.partition(slots[0])
            try:
                return slots[0], await self._download(part)
            except FlashError as error:
                failed = error
                beacon.journal.write("flash", error.code, "slot %d: %s" % (slots[0], error.detail))
                try:
                    beacon.store.put("bad_slot", bad | 1 << slots[0])
                except OSError:
                    raise failed

    # Fills the slot by the plan. When the slot does not hash to the signed checksum then, something
    # that was there already was not what it seemed to be, and all of the release is downloaded.
    async def _download(self, part):
        fields = self._fields
        decrypt = None
        encryption = fields.get("encryption")
        if encryption:
            from ota import decrypt as opener

            self.digest = encryption["ciphertext_sha256"]
            decrypt = opener.make_decrypter(fields, self.beacon.store.blob("fleet_key"))
        self.plan = await call(
            "ota.image ota.plan", "prepare", self.beacon, self.attempt, fields, part
        )
        while True:
            head = await self._try(part, decrypt)
            try:
                await call(
                    "ota.image ota.bootable",
                    "check_image",
                    part,
                    self.size,
                    head,
                    fields["checksum"],
                )
                return head
            except Refused as error:
                if error.code != "checksum" or not self._drop(error):
                    raise
                head = None

    # Nothing of what is in flash is used any more: all of the release is downloaded. False when
    # that was so already.
    def _drop(self, error):
        if not any(self.plan):
            return False
        self.beacon.journal.write("adapt", error.code, error.detail)
        self.plan = bytearray(len(self.plan))
        self.mark = 0
        return True

    # Fills the slot, all but the image's head, which is returned. After `give_up_s` (five minutes
    # by default) the download is given up.
    async def _try(self, part, decrypt):
        beacon = self.beacon
        record = self.attempt.record
        from ota.writer import Writer

        writer = Writer(part, record["cost"], decrypt)
        self._begun = time.ticks_ms()
        fruitless = 0
        try:
            while writer.written < self.size:
                before = writer.written
                try:
                    if self.plan[before // SECTOR]:
                        slots = part, beacon.slots.running_app
                        await call("ota.take", "take", self, writer, slots)
                    else:
                        await self._stream(writer)
                    fruitless = 0
                except HttpError as error:
                    if error.status in (409, 410):
                        self.attempt.cancel()
                    if error.status in (206, 416) and self._drop(error):
                        writer.restart()  # this server knows no ranges
                        continue
                    if writer.written > before:
                        fruitless = 0
                    await call("ota.retry", "pause", error, self, fruitless)
                    fruitless += 1
        finally:
            record["bytes"] = writer.written
            advertising_paused_ms = beacon.radio.resume()
            if advertising_paused_ms:
                record["advertising_paused_ms"] = advertising_paused_ms
        return writer.head

    # Milliseconds until the download is given up.
    def ms_left(self):
        return self._budget - time.ticks_diff(time.ticks_ms(), self._begun)

    # Shows and reports how far the download is, and lets other tasks run.
    async def pause(self, writer):
        if self.ms_left() < 0:
            raise HttpError("timeout", "given up after %d s" % (self._budget // 1000))
        if writer.written >= self.mark:
            percent = 100 * writer.written // self.size
            self.mark = ((percent + 1) * self.size + 99) // 100
            self.beacon.radio.set_progress(percent)
            if time.ticks_diff(time.ticks_ms(), self._reported) > _PROGRESS:
                self._reported = time.ticks_ms()
                self.attempt.record["bytes"] = writer.written
                await self.attempt.report_best_effort(percent)
        await asyncio.sleep_ms(0)

    # Downloads sectors up to the next that is here already, over one connection. A server may send
    # the whole image instead; the writer then begins again. The work for each sector is written out
    # in the loop: one more call would make an update noticeably slower.
    async def _stream(self, writer):
        plan = self.plan
        stop = writer.written // SECTOR
        while stop < len(plan) and not plan[stop]:
            stop += 1
        left = min(stop * SECTOR, self.size)
        source = await call("ota.fetch", "open", self, writer.written, left)
        try:
            if source.status == 200 and (writer.written or left < self.size):
                self._drop(HttpError("http", "the server does no ranges"))
                writer.restart()
                left = self.size
            left -= writer.written
            grab = source.read_available
            write = writer.write
            ticks = time.ticks_ms
            since = time.ticks_diff
            buf = writer.buf
            yielded = ticks()
            while left:
                if left < SECTOR:
                    buf = memoryview(buf)[:left]
                got = grab(buf)
                if got < len(buf):
                    got += await source.read_exactly(memoryview(buf)[got:])
                    if got < len(buf):
                        raise HttpError("truncated", "ended %d bytes early" % (left - got))
                write(got)
                left -= got
                if since(ticks(), yielded) >= _TURN or writer.written >= self.mark:
                    await self.pause(writer)
                    yielded = ticks()
        finally:
            source.close()
