# One attempt at one release, from the offer to the reset: believe, download, write, check, arm. It
# is imported when there is an offer and forgotten when it failed, so that an idle beacon does not
# carry it. Every way out has a name: a refusal (verify), a flash error, a failed exchange
# (download), or Over when the orchestrator has ended the attempt.

import asyncio
import time

import machine
from lazy import forget, load
from micropython import const
from net.http import HttpError
from wire.refused import Refused

from ota import schedule
from ota.slots import FlashError

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
        self.url = offer["download_url"]
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
        beacon = self._beacon
        self.mark("downloading")
        beacon.radio.progress(0)
        await self.tell("downloading", 0)
        fields = await self._believe()
        slot, head = await self._fetch(fields)
        self.record["bytes"] = fields["size"]
        self.mark("verifying")
        await self._insist("verifying")
        # What otadata still says of an earlier trial must not be taken for this one's.
        self._change_otadata(beacon.slots.erase_stale)
        self.record["slot"] = slot
        self.mark("rebooting")
        await self._insist("rebooting")
        beacon.radio.progress(REBOOTING)
        await asyncio.sleep_ms(_FAREWELL)
        await load("ota.bootable")
        # From here to the reset nothing else runs: what is journalled after this is the trial's.
        self.record["armed"] = True
        self.record["journal"] = beacon.journal.head()
        self.mark("rebooting")
        try:
            self._write_head(slot, head)
            self._change_otadata(beacon.slots.arm, slot)
        except Exception:
            self._give_up(slot)
            raise
        machine.reset()

    # Nothing is downloaded before this returns the signed manifest's fields. From here on they
    # count, and the offer is forgotten.
    async def _believe(self):
        await load("wire.versions", "wire.manifest", "crypto.pss", "ota.known", "ota.verify")
        from ota import verify

        offer, self._offer = self._offer, {}
        fields = await verify.believe(self._beacon, offer)
        self._beacon.heap()
        offer.clear()  # whoever still refers to it
        verify = None
        forget("ota.known", "ota.verify", "crypto.pss")
        forget("wire.manifest", "wire.versions")
        return fields

    async def _fetch(self, fields):
        await load("ota.writer", "ota.download")
        from ota import download

        fetched = await download.Download(self._beacon, self, fields).run()
        self._beacon.heap()
        download = None
        forget("ota.download", "ota.writer", "ota.bootable", "ota.decrypt")
        forget("crypto.ctr", "crypto.hkdf")
        return fetched

    # Now the slot boots. One that does not take it is not used again until the next power-on.
    def _write_head(self, slot, head):
        from ota import bootable

        store = self._beacon.store
        try:
            bootable.write_head(self._beacon.slots.partition(slot), head)
        except FlashError:
            store.try_put("bad_slot", store.number("bad_slot") | 1 << slot)
            raise

    # What is going to be told as failed must not boot by the next reset, nor by a rescue.
    def _give_up(self, slot):
        try:
            self._beacon.slots.give_up(slot)
        except OSError as error:
            print("flash:", error)

    def _change_otadata(self, change, *args):
        try:
            change(*args)
        except OSError as error:
            if error.errno == -5379:  # ESP_ERR_OTA_VALIDATE_FAILED: the core is not bootable
                raise Refused("image", str(error))
            raise FlashError("write", "otadata: %s" % error)

    # -- reports

    # A report that may get lost, but not be refused.
    async def tell(self, status, progress=None):
        try:
            taken = await self._reporter.send(self._reporter.build(status, self.record, progress))
        except HttpError as error:
            print("report:", error.code, error.detail)
            return
        if not taken:
            raise Over

    # A report that has to be taken before the next step: a halted rollout stops here. An answer
    # that is neither 2xx nor the word that it is over is no leave to go on, whatever it says.
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
