"""The page of failures: counts by stage, reason, building and release."""

from collections import Counter

from beacon_ota.orchestrator.dashboard.beacons import RESET_CAUSES
from beacon_ota.orchestrator.dashboard.fleet import load_fleet
from beacon_ota.orchestrator.dashboard.logs import versions_of
from beacon_ota.orchestrator.dashboard.page_base import Page, PageRequest
from beacon_ota.orchestrator.dashboard.selection import hours_ago
from beacon_ota.orchestrator.db.tables import firmwares, outcomes
from beacon_ota.orchestrator.db.tables.outcomes import FAILURES, OutcomeFilter
from beacon_ota.wire.report import CODES

SPANS = {"24": "24 hours", "168": "7 days", "720": "30 days", "": "all time"}
_LATEST = 25

# The stages in words; docs/contracts.md has the table.
MEANING = {
    "download": "between the first byte and the last",
    "flash": "while writing to a slot",
    "verify": "the image or its manifest was refused",
    "boot": "the release did not prove itself, or was cut short",
    "": "silent for too long after the offer was taken",
}


def show_failures(ask: PageRequest) -> Page:
    """Failures in a span of time, of all releases or of one."""
    hours = ask.query.get("hours", "168")
    hours = hours if hours in SPANS else "168"
    release = ask.query.get("release") or None
    result = ask.query.get("result", "")
    result = result if result in FAILURES else None
    which = OutcomeFilter(
        result=result, firmware_id=release, since=hours_ago(hours or None, ask.now)
    )
    rows = ask.read(outcomes.count_by_reason, which)
    most = max((row["beacons"] for row in rows), default=0)
    failed = ask.read(outcomes.list_beacons, which)
    seen = load_fleet(ask.service, ask.now)
    hit = Counter(row.building for row in seen.rows if row.id in failed)
    return Page(
        "failures.html",
        "Failures",
        {
            "rows": rows,
            "most": most,
            "failed": len(failed),
            "buildings": hit.most_common(),
            "sizes": Counter(row.building for row in seen.rows),
            "causes": ask.read(outcomes.count_reset_causes, which),
            "cause_names": RESET_CAUSES,
            "latest": ask.read(outcomes.list_latest, which, _LATEST),
            "versions": versions_of(ask),
            "releases": [(row["id"], row["version"]) for row in ask.read(firmwares.list_all)],
            "stages": [*CODES, ""],
            "meaning": MEANING,
            "spans": SPANS,
            "hours": hours,
            "release": release,
            "result": result,
            "results": FAILURES,
        },
        live="attempt firmware",
    )
