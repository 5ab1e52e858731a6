"""The pages of releases: contents of the image, signatures, beacons that run it."""

import json
from collections import Counter
from functools import lru_cache

from beacon_ota.errors import BeaconOtaError
from beacon_ota.orchestrator.api.firmwares import find_release_roles
from beacon_ota.orchestrator.blobs.local import LocalBlobStore
from beacon_ota.orchestrator.dashboard.fleet import BADGES, load_fleet
from beacon_ota.orchestrator.dashboard.page_base import Page, PageRequest
from beacon_ota.orchestrator.db.tables import Fields, firmwares, outcomes, rollouts
from beacon_ota.orchestrator.db.tables.outcomes import OutcomeFilter
from beacon_ota.orchestrator.http.problems import not_found
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.releases.cost import FleetCost, estimate_fleet_cost

_SOON_S = 14 * 86400.0


def list_releases(ask: PageRequest) -> Page:
    """All releases, newest first."""
    rows = ask.read(firmwares.list_all)
    seen = load_fleet(ask.service, ask.now)
    running = Counter((row.device_type, row.version) for row in seen.rows)
    return Page(
        "releases.html",
        "Releases",
        {
            "releases": rows,
            "roles": find_release_roles(rows),
            "running": running,
            "came": ask.read(outcomes.count_by_release),
            "nothing": Counter(),
            "expiry": {row["id"]: _expiry_label(row, ask.now) for row in rows},
        },
        live="firmware attempt rollout",
    )


def show_release(ask: PageRequest) -> Page:
    """One release."""
    firmware_id = ask.path["firmware_id"]
    rows = ask.read(firmwares.list_all)
    row = next((one for one in rows if one["id"] == firmware_id), None)
    if row is None:
        raise not_found("release", firmware_id)
    seen = load_fleet(ask.service, ask.now)
    runs = [
        one
        for one in seen.rows
        if (one.device_type, one.version) == (row["device_type"], row["version"])
    ]
    info = json.loads(row["info"])
    return Page(
        "release.html",
        f"Release {row['version']}",
        {
            "row": row,
            "role": find_release_roles(rows).get(firmware_id),
            "info": info,
            "inside": None if info.get("encrypted") else _read_contents(ask, row),
            "manifest": _read_manifest(row["manifest"]),
            "expiry": _expiry_label(row, ask.now),
            "runs": runs,
            "badges": BADGES,
            "states": Counter(one.state for one in runs),
            "buildings": Counter(one.building for one in runs).most_common(),
            "came": ask.read(outcomes.count_by_release).get(firmware_id, Counter()),
            "reasons": ask.read(outcomes.count_by_reason, OutcomeFilter(firmware_id=firmware_id)),
            "rollouts": ask.read(rollouts.list_for_release, firmware_id, LIMITS.page),
            "cost": estimate_cost(ask, row),
        },
        live=f"firmware:{firmware_id} rollout attempt",
    )


def estimate_cost(ask: PageRequest, row: Fields) -> FleetCost | None:
    """Return what a release costs the beacons that do not run it yet; None if it is withdrawn."""
    if row["state"] == "deprecated" or row["damaged_at"] is not None:
        return None
    return estimate_fleet_cost(ask.read, ask.service.blobs, row)


def _read_contents(ask: PageRequest, row: Fields) -> Fields | None:
    """Return the contents of an image, None if its bytes cannot be read."""
    try:
        return _parse_contents(ask.service.blobs, row["blob"], row["checksum"])
    except (BeaconOtaError, OSError):
        return None


@lru_cache(maxsize=16)
def _parse_contents(blobs: LocalBlobStore, digest: str, checksum: str) -> Fields:
    from beacon_ota.images import release

    found = release.parse_release(blobs.read(digest))
    return {
        "core_size": found.core.length,
        "core": found.core.descriptor,
        "core_sha256": found.core_sha256,
        "app_size": found.app_size,
        "app_offset": found.app_offset,
        "frozen": found.frozen,
        "size": found.size,
        "files": sorted((name, len(data)) for name, data in found.files.items()),
    }


def _read_manifest(envelope: str | None) -> Fields | None:
    """Return the fields of a stored manifest, and the ids of the keys that signed it."""
    if envelope is None:
        return None
    from beacon_ota.trust import releases

    try:
        fields = releases.claimed_manifest(envelope).fields()
    except BeaconOtaError:
        return None
    signers = [one.get("keyid", "") for one in json.loads(envelope).get("signatures", [])]
    return {"fields": fields, "signers": signers}


def _expiry_label(row: Fields, now: float) -> str:
    """Return the state of a manifest's expiry: none, good, soon, over."""
    if row["expires_at"] is None:
        return "none"
    if row["expires_at"] <= now:
        return "over"
    return "soon" if row["expires_at"] - now < _SOON_S else "good"
