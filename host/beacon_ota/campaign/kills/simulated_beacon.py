"""Beacons that are only their protocol: for crowding an orchestrator.

They keep the rules that counts depend on: an attempt's word is repeated until it is acknowledged,
and journal entries stay until then. They sign what they send and check what they are told.
"""

import hashlib
import hmac
import http.client
import json
import random
import secrets
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from beacon_ota.wire import auth

TIMEOUT = 60.0  # seconds for an answer
AHEAD = 2  # seconds that its clock is ahead: what is signed before a start is not accepted
CALL_ERRORS = (OSError, http.client.HTTPException, ValueError)


class UnauthenticatedAnswer(ValueError):
    """An answer that nobody who holds the key has made."""


@dataclass
class SignedAnswer:
    """An answer whose origin is proved."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class AcknowledgedCounts:
    """What the orchestrator has acknowledged to a beacon: none of it may ever be missing."""

    ends: dict[str, str] = field(default_factory=dict)  # attempt -> result
    entries: set[int] = field(default_factory=set)  # of the journal


class SimulatedBeacon:
    """One beacon. Call :meth:`step` again and again; it raises :data:`FAILS` when nobody answers.

    Args:
        beacon_id, key: as registered.
        chance: of everything that happens at random.
        lossy: share of requests after which the connection breaks before the answer is read.
        failing: share of attempts that fail.
    """

    def __init__(
        self,
        beacon_id: str,
        key: bytes,
        chance: random.Random,
        *,
        device_type: str = "esp32c3",
        version: str = "0.0.1",
        lossy: float = 0.0,
        failing: float = 0.0,
    ):
        self.id, self.key, self.device_type = beacon_id, key, device_type
        self.version, self.image = version, hashlib.sha256(version.encode()).hexdigest()
        self.url = ""
        self.acknowledged = AcknowledgedCounts()
        self._chance, self._lossy, self._failing = chance, lossy, failing
        self._offer: dict[str, Any] | None = None  # of the attempt under way
        self._unacknowledged: list[
            dict[str, Any]
        ] = []  # reports that have to be acknowledged, in order
        self._previous = version
        self._seq = 0
        self._journal: list[list[Any]] = []

    def step(self) -> str:
        """Do what comes next; return a word for it."""
        if self._unacknowledged:
            return self._send_report()
        if self._offer is None:
            return self._poll_update()
        return self._install_offer(self._offer)

    @property
    def busy(self) -> bool:
        """Is an attempt under way, or a word of one not acknowledged?"""
        return self._offer is not None or bool(self._unacknowledged)

    def add_journal_entry(self, stage: str, code: str) -> None:
        """Write an entry into the journal."""
        self._seq += 1
        self._journal.append([self._seq, 0, stage, code, "in a campaign"])
        self._journal = self._journal[-8:]

    def send_request(
        self, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> SignedAnswer:
        """Make a signed call."""
        parts = urlsplit(self.url)
        nonce = secrets.token_hex(8)
        ts = int(time.time()) + AHEAD
        digest = hashlib.sha256(body).hexdigest()
        text = auth.request_text(method, target, self.id, ts, nonce, digest)
        mac = hmac.digest(self.key, text, "sha256").hex()
        given = {"Authorization": auth.build_header(self.id, ts, nonce, mac), **(headers or {})}
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT)
        try:
            connection.request(method, target, body or None, given)
            if self._chance.random() < self._lossy:
                raise ConnectionResetError("the answer got lost")
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        found = {key.lower(): value for key, value in response.getheaders()}
        digest = hashlib.sha256(data).hexdigest()
        if "/download?" in target and response.status in (200, 206):
            digest = found.get("etag", "").strip('"')
        proof = auth.answer_text(nonce, response.status, digest)
        expected = hmac.digest(self.key, proof, "sha256").hex()
        if not hmac.compare_digest(found.get("x-beacon-mac", ""), expected):
            raise UnauthenticatedAnswer(f"{target}: {response.status} without proof")
        return SignedAnswer(response.status, found, data)

    # -- the steps

    def _poll_update(self) -> str:
        target = (
            f"/firmwares/latest/{self.device_type}?version={self.version}"
            f"&image={self.image}&state=valid"
        )
        answer = self.send_request("GET", target)
        if answer.status == 200:
            self._offer = json.loads(answer.body)
            return "offered"
        return "idle" if answer.status == 204 else "refused"

    def _install_offer(self, offer: dict[str, Any]) -> str:
        answer = self.send_request("GET", offer["download_url"])
        if answer.status in (409, 410):
            self._offer = None
            return "called off"
        if answer.status != 200:
            return "refused"
        if hashlib.sha256(answer.body).hexdigest() != offer["checksum"]:
            raise UnauthenticatedAnswer("the image is not what was offered")
        self._previous = self.version
        if self._chance.random() < self._failing:
            self.add_journal_entry("verify", "checksum")
            why = {"stage": "verify", "code": "checksum", "detail": "in a campaign"}
            self._unacknowledged = [self._make_report("failed", offer, why)]
        else:
            self._unacknowledged = [
                self._make_report("rebooting", offer),
                self._make_report("success", offer),
            ]
        return "downloaded"

    def _make_report(
        self, word: str, offer: dict[str, Any], more: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        return {
            "firmware_version": offer["version"],
            "update_status": word,
            "updated_at": int(time.time()),
            "image_sha256": offer["checksum"] if word == "success" else self.image,
            "attempt_id": offer["attempt_id"],
            "firmware_id": offer["firmware_id"],
            "previous_version": self._previous,
            **(more or {}),
        }

    def _send_report(self) -> str:
        doc = self._unacknowledged[0]
        word = doc["update_status"]
        entries = list(self._journal)
        body = json.dumps({**doc, **({"journal": entries} if entries else {})}).encode()
        answer = self.send_request("POST", f"/api/beacons/{self.id}/ota_status", body)
        if answer.status in (409, 410):
            self._offer, self._unacknowledged = None, []
            return "called off"
        if answer.status != 200:
            return "refused"
        acked = json.loads(answer.body).get("journal_ack", 0)
        self.acknowledged.entries |= {entry[0] for entry in entries if entry[0] <= acked}
        self._journal = [entry for entry in self._journal if entry[0] > acked]
        self._unacknowledged.pop(0)
        if word in ("success", "failed"):
            self.acknowledged.ends[doc["attempt_id"]] = word
            self._offer = None
        if word == "rebooting":
            self.version, self.image = (
                doc["firmware_version"],
                self._unacknowledged[0]["image_sha256"],
            )
        return word
