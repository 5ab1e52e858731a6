# Downloads the release into the first slot that erases, programs and reads back correctly, over as
# many connections as it takes. Imported only after the manifest has been verified, to save heap.

import asyncio
import gc
import time

from micropython import const
from modules import preload
from net.api import is_clock_skew
from net.http import HttpError
from wire.refused import Refused

from ota import schedule
from ota.slots import SECTOR, FlashError

_TURN = const(12)  # ms after which other tasks may run
_PROGRESS = const(10000)  # ms between progress reports
_QUIET = const(2)  # tries without progress before Bluetooth is paused


class Download:
    # `fields` are those of the signed manifest.
    def __init__(self, beacon, attempt, fields):
        self._beacon = beacon
        self._attempt = attempt
        self._fields = fields
        self._size = fields["size"]
        self._digest = fields["checksum"]
        self._budget = 1000 * beacon.store.policy("give_up_s")
        self._begun = 0
        self._reported = time.ticks_ms()

    # Returns the number of the slot and the image's head, which is not written yet: the rest of the
    # slot is the signed release, but does not boot. A slot whose flash fails is recorded and not
    # used again until the next power-on.
    async def run(self):
        beacon = self._beacon
        failed = None
        while True:
            bad = beacon.store.number("bad_slot")
            slots = beacon.slots.target_slots(self._size, bad)
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

    async def _download(self, part):
        fields = self._fields
        beacon = self._beacon
        record = self._attempt.record
        decrypt = None
        encryption = fields.get("encryption")
        if encryption:
            from ota import decrypt as opener

            self._digest = encryption["ciphertext_sha256"]
            decrypt = opener.make_decrypter(fields, beacon.store.blob("fleet_key"))
        from ota.writer import Writer

        writer = Writer(part, self._size, decrypt)
        self._begun = time.ticks_ms()
        try:
            await self._retry_until_complete(writer)
        finally:
            record["bytes"] = writer.written
            advertising_paused_ms = beacon.radio.resume()
            if advertising_paused_ms:
                record["advertising_paused_ms"] = advertising_paused_ms
        found = writer.digest()
        if found != fields["checksum"]:
            raise Refused("checksum", "flash holds " + found[:16])
        head = writer.head
        writer = None  # frees its buffers for the next module
        await preload("ota.bootable")
        from ota import bootable

        bootable.check_image(part, self._size, head)
        return head

    # Downloads the whole image. Between tries without progress there are pauses from `backoff_ms`
    # on, doubling (2 to 32 s by default). The download is given up after `give_up_s` in all (five
    # minutes by default), also if it makes progress.
    async def _retry_until_complete(self, writer):
        beacon = self._beacon
        fruitless = 0
        while writer.written < self._size:
            before = writer.written
            try:
                if before:
                    await writer.rehash()
                await self._stream(writer)
            except HttpError as error:
                if error.status in (409, 410):
                    self._attempt.cancel()
                if (
                    error.code == "timeout"
                    or 400 <= error.status < 500
                    and not _is_transient(error)
                ):
                    raise
                if not error.status:
                    beacon.api.distrust_address()
                fruitless = 0 if writer.written > before else fruitless
                pause = schedule.retry_pause(fruitless, beacon.store.policy("backoff_ms"))
                if pause is None:
                    raise
                fruitless += 1
                pause = max(pause, 1000 * min(error.retry or 0, 3600))
                if self._ms_left() < pause:
                    raise HttpError("timeout", "%s, then %s" % (error.code, error.detail))
                print("download:", error.code, error.detail, "at", writer.written)
                starved = error.code in ("stall", "truncated", "connect")
                gc.collect()
                await asyncio.sleep_ms(pause)
                await beacon.wifi.wait_until_up(self._ms_left())
                if fruitless >= _QUIET and starved:
                    beacon.radio.pause()

    # Milliseconds until the download is given up.
    def _ms_left(self):
        return self._budget - time.ticks_diff(time.ticks_ms(), self._begun)

    # Downloads over one connection. The work for each sector is written out in the loop: one more
    # call would make an update noticeably slower.
    async def _stream(self, writer):
        beacon = self._beacon
        source = await _open_download(
            beacon.api,
            self._attempt.download_url,
            self._digest,
            writer.written,
            1000 * beacon.store.policy("stall_s"),
            time.ticks_add(self._begun, self._budget),
        )
        try:
            self._check_range(source, writer)
            source.drop_header_buffer()
            grab = source.read_available
            write = writer.write
            ticks = time.ticks_ms
            since = time.ticks_diff
            buf = writer.buf
            left = self._size - writer.written
            mark = left  # bytes left at which the next percent is reached
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
                if since(ticks(), yielded) >= _TURN:
                    if self._ms_left() < 0:
                        raise HttpError("timeout", "given up after %d s" % (self._budget // 1000))
                    await asyncio.sleep_ms(0)
                    yielded = ticks()
                if left <= mark:
                    percent = 100 * writer.written // self._size
                    mark = self._size - ((percent + 1) * self._size + 99) // 100
                    self._beacon.radio.set_progress(percent)
                    if since(ticks(), self._reported) > _PROGRESS:
                        self._reported = ticks()
                        self._attempt.record["bytes"] = writer.written
                        await self._attempt.report_best_effort(percent)
        finally:
            source.close()

    # Checks that the answer is the rest of this image. A server may send the whole image instead;
    # the writer then begins again. The mac identifies the file, not the ETag, which proxies weaken
    # when they compress or change an answer.
    def _check_range(self, source, writer):
        first = writer.written
        if source.status == 200:
            if first:
                writer.restart()
            first = 0
        else:
            want = "bytes %d-%d/%d" % (first, self._size - 1, self._size)
            found = source.headers.get("content-range")
            if not first or found != want:
                raise HttpError("http", "range %s" % found)
        length = source.length()
        if length is not None and length != self._size - first:
            code = "truncated" if length < self._size - first else "http"
            raise HttpError(code, "length %d, not %d" % (length, self._size - first))


# Requests the file with SHA-256 `digest` from byte `first` on. Returns the connection with an
# authenticated answer, 200 (the whole file) or 206 (from `first` on). Every wait ends at the ticks
# `deadline`.
async def _open_download(api, target, digest, first, idle_timeout_ms, deadline):
    headers = ()
    if first:
        headers = (("Range", "bytes=%d-" % first), ("If-Range", '"%s"' % digest))
    for again in (True, False):
        connection = await api.open_request("GET", target, b"", headers, idle_timeout_ms, deadline)
        if connection.status in (200, 206):
            try:
                api.check_mac(connection, digest)
            except BaseException:
                connection.close()
                raise
            return connection
        status, answer, retry = await api.read_answer(connection)
        # The orchestrator was restarted meanwhile; as in Api.call().
        if not (again and status == 401 and is_clock_skew(answer)):
            break
    raise HttpError("http", "status %d" % status, False, status, retry)


# Whether the orchestrator refused this request only: another one may be accepted.
def _is_transient(error):
    return error.status in (401, 408, 429)
