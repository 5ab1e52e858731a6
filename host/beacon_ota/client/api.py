"""The orchestrator's API, a method for each call."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import requests

from beacon_ota.client.transport import Transport, describe_failure
from beacon_ota.errors import InputError, ReachError, UsageError
from beacon_ota.images import blocks

Json = dict[str, Any]


class Client(Transport):
    """The API, call by call.

    Every failure is one of :mod:`beacon_ota.errors`, with the code that the server gives.
    """

    # ---- releases ----

    def upload_firmware(self, image: Path | BinaryIO, **fields: str) -> Json:
        """Upload a release image; ``fields`` are those of the form."""
        if isinstance(image, Path):
            try:
                with image.open("rb") as file:
                    return self.upload_firmware(file, **fields)
            except OSError as error:
                raise UsageError(
                    "file_unreadable", f"cannot read {image}: {error.strerror}"
                ) from None
        return self.call(
            "POST", "/api/firmwares/upload", data=fields, files={"binary": ("image", image)}
        )

    def list_firmwares(self, **filters: Any) -> list[Json]:
        """Return the releases, newest first."""
        return self.call("GET", "/api/firmwares", params=_drop_none(filters))["firmwares"]

    def find_firmware(self, name: str) -> Json:
        """Return a release by its id, or by ``version`` or ``device_type/version``."""
        if len(name) == 24 and not name.strip("0123456789abcdef"):
            return self.call("GET", f"/api/firmwares/{name}")
        device_type, _, version = name.rpartition("/")
        found = [
            one
            for one in self.list_firmwares(device_type=device_type or None)
            if one["version"] == version
        ]
        if not found:
            raise InputError(
                "firmware_unknown",
                f"No release {name}. `release list` shows them.",
                expected="an id, a version, or device_type/version",
            )
        if len(found) > 1:
            raise InputError(
                "firmware_ambiguous",
                f"{len(found)} releases are called {name}: name the device type, too",
                found=[f"{one['device_type']}/{one['version']}" for one in found],
                expected="device_type/version",
            )
        return found[0]

    def download_firmware(self, firmware: Json, file: BinaryIO) -> None:
        """Write the bytes of a release that beacons get into a file.

        Raises:
            ReachError: ``download_damaged``: they are not the bytes that were uploaded.
        """
        digest = hashlib.sha256()
        path = f"/firmwares/{_quote_segment(firmware['firmware_id'])}/download"
        try:
            with self.request("GET", path, stream=True) as answer:
                for piece in answer.iter_content(1 << 16):
                    digest.update(piece)
                    file.write(piece)
        except requests.RequestException as error:
            raise ReachError(
                "unreachable", f"the download broke off: {describe_failure(error)}"
            ) from None
        if digest.hexdigest() != firmware["blob"]:
            raise ReachError(
                "download_damaged",
                "these are not the bytes that were uploaded",
                found=digest.hexdigest(),
                expected=firmware["blob"],
            )

    def estimate_cost(self, firmware_id: str) -> Json:
        """Return what a release costs the beacons of its board."""
        return self.call("GET", f"/api/firmwares/{_quote_segment(firmware_id)}/cost")

    def download_blocks(self, firmware: Json) -> bytes:
        """Return the block index of a release (contracts.md §1).

        Raises:
            ReachError: ``download_damaged``: it is not one of an image of that size.
        """
        path = f"/firmwares/{_quote_segment(firmware['firmware_id'])}/blocks"
        index = self.request("GET", path).content
        if len(index) != blocks.index_size(firmware["size"]):
            raise ReachError(
                "download_damaged",
                "this is not the block index of the release",
                found=len(index),
                expected=blocks.index_size(firmware["size"]),
            )
        return index

    def post_firmware_action(self, firmware_id: str, action: str, reason: str = "") -> Json:
        """``promote`` or ``deprecate`` a release."""
        params = {"reason": reason} if reason else {}
        return self.call("POST", f"/api/firmwares/{firmware_id}/{action}", params=params)

    # ---- beacons ----

    def list_beacons(self, **filters: Any) -> Iterator[Json]:
        """Yield the beacons that match, page by page."""
        after: str | None = ""
        while after is not None:
            page = self.call("GET", "/api/beacons", params={**_drop_none(filters), "after": after})
            yield from page["beacons"]
            after = page["next"]

    def get_beacon(self, beacon_id: str, limit: int = 50) -> Json:
        """Return a beacon with its history."""
        return self.call(
            "GET", f"/api/beacons/{_quote_segment(beacon_id)}", params={"limit": limit}
        )

    def create_beacon(self, beacon_id: str, device_type: str, **fields: Any) -> Json:
        """Register a beacon: ``key`` (hex), ``site``, ``channel``, ``tags``."""
        body = {"beacon_id": beacon_id, "device_type": device_type, **_drop_none(fields)}
        return self.call("POST", "/api/beacons", json=body)

    def change_beacon(self, beacon_id: str, **fields: Any) -> Json:
        """Change ``site``, ``channel`` or ``tags``."""
        return self.call("PATCH", f"/api/beacons/{_quote_segment(beacon_id)}", json=fields)

    def post_beacon_action(self, beacon_id: str, action: str, reason: str | None = None) -> Json:
        """``rekey``, ``quarantine`` or ``unquarantine`` a beacon."""
        body = None if reason is None else {"reason": reason}
        return self.call("POST", f"/api/beacons/{_quote_segment(beacon_id)}/{action}", json=body)

    def retype_beacon(
        self, beacon_id: str, device_type: str | None = None, reason: str = ""
    ) -> Json:
        """Register a beacon as another board: None is what it says itself."""
        body = {"reason": reason, **_drop_none({"device_type": device_type})}
        return self.call("POST", f"/api/beacons/{_quote_segment(beacon_id)}/retype", json=body)

    def set_beacon_key(self, beacon_id: str, key: str) -> Json:
        """Say which key (hex) a beacon was provisioned with again."""
        return self.call("PUT", f"/api/beacons/{_quote_segment(beacon_id)}/key", json={"key": key})

    def remove_beacon(self, beacon_id: str) -> None:
        """Forget a beacon."""
        self.call("DELETE", f"/api/beacons/{_quote_segment(beacon_id)}")

    # ---- sites ----

    def list_sites(self) -> list[Json]:
        """Return the tree by path."""
        return self.call("GET", "/api/sites")["sites"]

    def create_site(self, path: str, **fields: Any) -> Json:
        """Add a site: ``name``, ``kind``, ``tz``, ``window``."""
        return self.call("POST", "/api/sites", json={"path": path, **_drop_none(fields)})

    def change_site(self, path: str, **fields: Any) -> Json:
        """Change a site; None takes the parent's."""
        return self.call("PATCH", f"/api/sites/{quote(path)}", json=fields)

    def remove_site(self, path: str) -> None:
        """Remove a site."""
        self.call("DELETE", f"/api/sites/{quote(path)}")

    # ---- rollouts ----

    def create_rollout(self, firmware_id: str, plan: Json | None = None, **fields: Any) -> Json:
        """Start a rollout: ``name``, ``start_at``."""
        return self.call("POST", "/api/rollouts", json=_rollout_body(firmware_id, plan, fields))

    def plan_rollout(self, firmware_id: str, plan: Json | None = None, **fields: Any) -> Json:
        """Say what a rollout would do."""
        return self.call(
            "POST", "/api/rollouts/plan", json=_rollout_body(firmware_id, plan, fields)
        )

    def list_rollouts(self, **filters: Any) -> list[Json]:
        """Return the rollouts, newest first: ``status``, ``begins`` (of the id), ``limit``."""
        return self.call("GET", "/api/rollouts", params=_drop_none(filters))["rollouts"]

    def get_rollout(self, rollout_id: str) -> Json:
        """Return a rollout in full."""
        return self.call("GET", f"/api/rollouts/{_quote_segment(rollout_id)}")

    def list_attempts(self, rollout_id: str) -> Iterator[Json]:
        """Yield a rollout's attempts."""
        after: str | None = ""
        while after is not None:
            path = f"/api/rollouts/{_quote_segment(rollout_id)}/attempts"
            page = self.call("GET", path, params={"after": after})
            yield from page["attempts"]
            after = page["next"]

    def post_rollout_action(
        self,
        rollout_id: str,
        action: str,
        reason: str = "",
        wave: int | None = None,
        revision: int | None = None,
    ) -> Json:
        """``pause``, ``resume``, ``halt``, ``abort`` or ``advance`` a rollout.

        Args:
            revision: resume, advance: as it was shown; it is refused when it has moved since.
        """
        body = {"reason": reason, **_drop_none({"wave": wave, "revision": revision})}
        return self.call("POST", f"/api/rollouts/{_quote_segment(rollout_id)}/{action}", json=body)

    # ---- webhooks ----

    def list_webhooks(self) -> list[Json]:
        """Return the webhooks, without their secrets."""
        return self.call("GET", "/api/webhooks")["webhooks"]

    def get_webhook(self, webhook_id: str, limit: int = 50) -> Json:
        """Return a webhook and its newest deliveries (``log``)."""
        params = {"limit": limit}
        return self.call("GET", f"/api/webhooks/{_quote_segment(webhook_id)}", params=params)

    def create_webhook(self, name: str, url: str, kinds: list[str] | None = None) -> Json:
        """Make a webhook; ``secret`` in the answer is shown nowhere else."""
        body = {"name": name, "url": url, **_drop_none({"kinds": kinds})}
        return self.call("POST", "/api/webhooks", json=body)

    def change_webhook(self, webhook_id: str, **fields: Any) -> Json:
        """Change ``name``, ``url``, ``kinds``, ``enabled``."""
        return self.call(
            "PATCH", f"/api/webhooks/{_quote_segment(webhook_id)}", json=_drop_none(fields)
        )

    def remove_webhook(self, webhook_id: str) -> None:
        """Remove a webhook and its log."""
        self.call("DELETE", f"/api/webhooks/{_quote_segment(webhook_id)}")

    def post_webhook_action(self, webhook_id: str, action: str) -> Json:
        """``test`` a webhook, or ``rotate`` its secret."""
        return self.call("POST", f"/api/webhooks/{_quote_segment(webhook_id)}/{action}")

    def retry_delivery(self, webhook_id: str, delivery_id: str) -> Json:
        """Try a delivery again that was given up."""
        hook, delivery = _quote_segment(webhook_id), _quote_segment(delivery_id)
        path = f"/api/webhooks/{hook}/deliveries/{delivery}/retry"
        return self.call("POST", path)

    # ---- tokens, audit, events ----

    def list_tokens(self) -> list[Json]:
        """Return the tokens, without anything that could be used as one."""
        return self.call("GET", "/api/tokens")["tokens"]

    def create_token(self, name: str, role: str, days: float | None = None) -> Json:
        """Make a token; ``token`` in the answer is shown nowhere else."""
        body = {"name": name, "role": role, **_drop_none({"days": days})}
        return self.call("POST", "/api/tokens", json=body)

    def revoke_token(self, token_id: str) -> Json:
        """Revoke a token."""
        return self.call("DELETE", f"/api/tokens/{_quote_segment(token_id)}")

    def list_audit_entries(self, **filters: Any) -> list[Json]:
        """Return entries of the audit log."""
        return self.call("GET", "/api/audit", params=_drop_none(filters))["entries"]

    def verify_audit(self, head: str | None = None) -> Json:
        """Verify the audit log's chain."""
        return self.call("GET", "/api/audit/verify", params=_drop_none({"head": head}))

    def list_latest_events(self, limit: int = 100, kind: str = "") -> list[Json]:
        """Return the newest stored events, only of kinds that begin so."""
        params = {"limit": limit, "kind": kind}
        return self.call("GET", "/api/events/latest", params=params)["events"]

    # ---- mirrors ----

    def list_mirrors(self) -> list[Json]:
        """Return the mirrors, by name."""
        return self.call("GET", "/api/mirrors")["mirrors"]

    def create_mirror(self, name: str, site: str) -> Json:
        """Make a mirror of a site; the answer holds its token, this once."""
        return self.call("POST", "/api/mirrors", json={"name": name, "site": site})

    def remove_mirror(self, mirror_id: str) -> None:
        """Give a mirror up."""
        self.call("DELETE", f"/api/mirrors/{_quote_segment(mirror_id)}")

    @contextmanager
    def follow_events(self, after: int | None = None, kind: str = "") -> Iterator[Iterator[Json]]:
        """Open the stream of events; the block gets an iterator over them.

        Raises:
            ReachError: ``unreachable``, also when the stream breaks off; ``not_an_orchestrator``.
        """
        params = {**_drop_none({"after": after}), "kind": kind}
        options = {"params": params, "stream": True, "timeout": (5.0, 60.0)}
        with self.request("GET", "/api/events", **options) as answer:
            if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                raise self._foreign_answer()
            yield self._read_events(answer)

    def _read_events(self, answer: requests.Response) -> Iterator[Json]:
        try:
            for line in answer.iter_lines(chunk_size=1):
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])
        except requests.RequestException as error:
            raise ReachError(
                "unreachable", f"the stream broke off: {describe_failure(error)}"
            ) from None
        except ValueError:
            raise self._foreign_answer() from None


def _drop_none(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def _quote_segment(name: str) -> str:
    return quote(name, safe="")


def _rollout_body(firmware_id: str, plan: Json | None, fields: dict[str, Any]) -> Json:
    order = {"firmware_id": firmware_id, **_drop_none(fields)}
    return order if plan is None else {**order, "plan": plan}
