# One attempt at one release, from the offer to the reset: believe, download, write, check, arm. It
# is imported when there is an offer and forgotten when it failed, so that an idle beacon does not
# carry it. Every way out has a name: a refusal (verify), a flash error, a failed exchange
# (download), or Over when the orchestrator has ended the attempt.

import asyncio
import time

from micropython import const
from modules import preload, unload
from net.http import HttpError

from ota.slots import FlashError

# What is loaded to verify an offer, what to download the release (dependencies first), and all
# that an attempt may leave behind.
_VERIFICATION = const("wire.versions wire.manifest crypto.pss ota.denylist ota.verify")
_DOWNLOAD = const(
    "ota.writer ota.download ota.bootable ota.decrypt ota.image crypto.ctr crypto.hkdf"
)
MODULES = _VERIFICATION + " " + _DOWNLOAD + " ota.boot_slot ota.acknowledged ota.install"

_FAREWELL = const(1000)  # ms in which the air says that the beacon reboots
REBOOTING = const(0xFF)


# The orchestrator says that there is nothing more to do for this attempt.
class AttemptCancelled(Exception):
    pass


class Install:
    def __init__(self, beacon, reporter, offer):
        self._beacon = beacon
        self.reporter = reporter
        self._offer = offer
        self._begun = time.ticks_ms()
        self.download_url = offer["download_url"]
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
    def save_status(self, status):
        self.record["status"] = status
        duration_ms = time.ticks_diff(time.ticks_ms(), self._begun)
        self.record["duration_ms"] = duration_ms
        try:
            self._beacon.store.put("attempt", self.record)
        except OSError as error:
            raise FlashError("write", "nvs: %s" % error)

    # Ends in a reset into the new release, or in the exception that says why not.
    async def run(self):
        beacon = self._beacon
        self.save_status("downloading")
        beacon.radio.set_progress(0)
        await self.report_best_effort(0)
        fields = await self._verify_offer()
        slot, head = await self._download(fields)
        self.record["bytes"] = fields["size"]
        self.save_status("verifying")
        await preload("ota.acknowledged ota.bootable")
        from ota import acknowledged, bootable

        await acknowledged.report_until_acknowledged(beacon, self, "verifying")
        # What otadata still says of an earlier trial must not be taken for this one's.
        bootable.change_otadata(beacon.slots.erase_stale_entries)
        self.record["slot"] = slot
        self.save_status("rebooting")
        await acknowledged.report_until_acknowledged(beacon, self, "rebooting")
        beacon.radio.set_progress(REBOOTING)
        await asyncio.sleep_ms(_FAREWELL)
        bootable.arm_slot(beacon, self, slot, head)

    # Nothing is downloaded before this returns what a download needs of the signed manifest. From
    # here on that counts, and the offer is forgotten.
    async def _verify_offer(self):
        await preload(_VERIFICATION)
        from ota import verify

        offer, self._offer = self._offer, {}
        fields = await verify.verify_offer(self._beacon, offer)
        self._beacon.measure_heap()
        offer.clear()  # whoever still refers to it
        verify = None
        unload(_VERIFICATION)
        return {name: fields.get(name) for name in ("size", "checksum", "encryption")}

    async def _download(self, fields):
        await preload("ota.writer ota.download")
        from ota import download

        fetched = await download.Download(self._beacon, self, fields).run()
        self._beacon.measure_heap()
        download = None
        unload(_DOWNLOAD)
        return fetched

    # -- reports

    # Reports progress, in percent. This report may get lost; when the orchestrator answers that the
    # attempt is over, the attempt ends.
    async def report_best_effort(self, progress):
        record = self.record
        try:
            doc = self.reporter.build(record["status"], record, progress)
            taken = await self.reporter.send(doc)
        except HttpError as error:
            print("report:", error.code, error.detail)
            return
        if not taken:
            self.cancel()

    # The orchestrator has ended the attempt. A method, so that what an attempt loads on its way
    # need not import this module.
    def cancel(self):
        raise AttemptCancelled
