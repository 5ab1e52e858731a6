# One attempt to install a release, from the offer to the reset: verify, download, check, arm. The
# module is imported when there is an offer and unloaded when the attempt has failed, so that an
# idle beacon does not hold it in memory. An attempt ends in one of five ways:
#
# * a reset into the new release;
# * wire.refused.Refused: the manifest or the image was refused (stage "verify");
# * FlashError: flash or NVS failed (stage "flash");
# * HttpError: an exchange failed (stage "download");
# * AttemptCancelled: the orchestrator has ended the attempt.

import time

from micropython import const
from modules import call
from net.http import HttpError

from ota.slots import FlashError

# What is loaded to verify an offer, dependencies first.
_VERIFICATION = const("wire.versions wire.manifest crypto.pss ota.denylist ota.verify")


# The orchestrator has ended this attempt; there is nothing to report.
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

    # Stores how far the attempt has come, for a boot after an unexpected reset. An attempt does not
    # go on without that.
    def save_status(self, status):
        self.record["status"] = status
        duration_ms = time.ticks_diff(time.ticks_ms(), self._begun)
        self.record["duration_ms"] = duration_ms
        try:
            self._beacon.store.put("attempt", self.record)
        except OSError as error:
            raise FlashError("write", "nvs: %s" % error)

    # Ends in a reset into the new release, or raises the exception that says why not. Each step has
    # a module of its own, so that the longest one, the download, has the most memory.
    async def run(self):
        beacon = self._beacon
        self.save_status("downloading")
        beacon.radio.set_progress(0)
        await self.report_best_effort(0)
        offer, self._offer = self._offer, None
        # Nothing is downloaded before, and from here on the manifest counts, not the offer.
        fields = await call(_VERIFICATION, "verify_offer", beacon, offer)
        offer.clear()  # callers still refer to it
        slot, head = await self._download(fields)
        self.record["bytes"] = fields["size"]
        await call("ota.image ota.bootable ota.acknowledged", "finish", beacon, self, slot, head)

    async def _download(self, fields):
        return await call("ota.writer ota.download", "run", self._beacon, self, fields)

    # -- reports

    # Reports progress, in percent. This report may get lost; when the orchestrator answers that the
    # attempt is over, the attempt ends.
    async def report_best_effort(self, progress):
        record = self.record
        try:
            taken = await self.reporter.send(record["status"], record, progress)
        except HttpError as error:
            print("report:", error.code, error.detail)
            return
        if not taken:
            self.cancel()

    # The orchestrator has ended the attempt. A method, so that the modules which an attempt loads
    # need not import this one.
    def cancel(self):
        raise AttemptCancelled
