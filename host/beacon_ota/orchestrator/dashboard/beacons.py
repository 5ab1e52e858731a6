"""The pages of beacons: the filtered listing behind every number, and one beacon's history."""

import json

from sqlalchemy import Connection

from beacon_ota.orchestrator.core.health import HEALTH_LABELS, health_label
from beacon_ota.orchestrator.dashboard.fleet import BADGES, FLAGS, load_fleet
from beacon_ota.orchestrator.dashboard.logs import versions_of
from beacon_ota.orchestrator.dashboard.page_base import Page, PageRequest
from beacon_ota.orchestrator.dashboard.selection import PAGE, SORTS, Selection, sort_rows
from beacon_ota.orchestrator.db.tables import Fields, attempts, beacons, sites
from beacon_ota.orchestrator.http.asgi import parse_decimal
from beacon_ota.orchestrator.http.problems import not_found
from beacon_ota.orchestrator.rollout.decide import decide
from beacon_ota.orchestrator.rollout.types import Reason
from beacon_ota.orchestrator.rollout.windows import format_window

_HISTORY = 50

# machine.reset_cause() of the ESP32-C3's MicroPython.
RESET_CAUSES = {1: "power-on", 2: "hard", 3: "watchdog", 4: "deep sleep", 5: "soft"}

# The answer to a poll now, in words; docs/rollouts.md has the table.
REASONS = {
    Reason.OFFER: "it would be offered the release now",
    Reason.NO_RELEASE: "no rollout is for it",
    Reason.UP_TO_DATE: "it runs the newest that there is for it",
    Reason.VERSION: "it has not said what version it runs",
    Reason.CHANNEL: "the release is still in testing, and the beacon not on the beta channel",
    Reason.WITHDRAWN: "the release was withdrawn",
    Reason.QUARANTINED: "it is in quarantine",
    Reason.BOARD: "it says that it is another board than it is registered as",
    Reason.TRIAL: "the image that it runs is not confirmed yet",
    Reason.SCHEDULED: "the rollout starts later",
    Reason.PAUSED: "the rollout is paused",
    Reason.HALTED: "the rollout is halted",
    Reason.ABORTED: "the rollout was aborted",
    Reason.WAVE: "its wave is not open yet",
    Reason.STAGE: "its stage is not open yet",
    Reason.BLAMED: "it has called the release bad: it went back from it, or refuses it",
    Reason.ATTEMPTS: "it has used up its attempts at this release",
    Reason.RETRY: "it waits before it tries again",
    Reason.REBOOTING: "it is rebooting into the release",
    Reason.WINDOW: "its building's maintenance window is closed",
    Reason.BUSY: "enough others in its building are updating",
    Reason.LEASE: "this mirror has been without its primary for longer than its lease",
}


def list_beacons(ask: PageRequest) -> Page:
    """The listing of beacons, with the filters that the numbers on other pages link to."""
    chosen = Selection.of(ask.query)
    seen = load_fleet(ask.service, ask.now)
    sort = ask.query.get("sort", "")
    sort = sort if sort.removeprefix("-") in SORTS else "id"
    rows = sort_rows(chosen.apply(seen, ask), sort)
    pages = max(1, -(-len(rows) // PAGE))
    number = max(1, ask.number("page", 1, pages))
    return Page(
        "beacons.html",
        "Beacons",
        {
            "chosen": chosen,
            "told": _describe_filters(chosen, ask, seen.releases),
            "rows": rows[(number - 1) * PAGE : number * PAGE],
            "total": len(rows),
            "all": len(seen.rows),
            "page": number,
            "pages": pages,
            "sort": sort,
            "states": list(HEALTH_LABELS),
            "flags": FLAGS,
            "sites": [site["path"] for site in ask.read(sites.list_all)],
            "versions": [one.version for one in seen.versions if one.version],
        },
        live="*",
    )


def show_beacon(ask: PageRequest) -> Page:
    """One beacon: what it runs, what a poll would be answered now, and its history."""
    beacon_id = ask.path["beacon_id"]
    node = ask.service.fleet.beacons.get(beacon_id)
    found = ask.read(_read_history, beacon_id)
    if node is None or found is None:
        raise not_found("beacon", beacon_id)
    row, tries, reports, journal = found
    view = ask.service.fleet
    place = view.place_of(node)
    decision = decide(
        view.build_active_rollouts(node.beacon.device_type),
        node.beacon,
        ask.now,
        attempts=tuple(node.attempts),
        place=place,
        busy=view.updates_in_building(place.building, node),
    )
    decision = ask.service.within_lease(decision)
    state = health_label(node, view.releases, ask.now)
    release = next(
        (
            one.row
            for one in view.releases.copy().values()
            if (one.row["device_type"], one.row["version"])
            == (node.beacon.device_type, node.beacon.version)
        ),
        None,
    )
    return Page(
        "beacon.html",
        beacon_id,
        {
            "node": node,
            "row": row,
            "tags": json.loads(row["tags"]),
            "state": state,
            "standing": HEALTH_LABELS[state],
            "badges": BADGES,
            "place": place,
            "hours": format_window(place.window),
            "decision": decision,
            "told": REASONS[decision.reason],
            "release": release,
            "attempts": tries,
            "reports": reports,
            "journal": journal,
            "versions": versions_of(ask),
            "causes": RESET_CAUSES,
        },
        live=f"beacon:{beacon_id} firmware site",
    )


def _read_history(
    conn: Connection, beacon_id: str
) -> tuple[Fields, list[Fields], list[Fields], list[Fields]] | None:
    row = beacons.get(conn, beacon_id)
    if row is None:
        return None
    return (
        row,
        attempts.list_for_beacon(conn, beacon_id, _HISTORY),
        beacons.list_reports(conn, beacon_id, _HISTORY),
        beacons.list_journal(conn, beacon_id, _HISTORY),
    )


def _number_label(what: str, text: str) -> str:
    """Return "wave 1" for wave 0, "" for text that is no number."""
    number = parse_decimal(text, 10**6)
    return "" if number is None else f"{what} {number + 1}"


def _describe_filters(
    chosen: Selection, ask: PageRequest, releases: dict
) -> list[tuple[str, str, str]]:
    """Return the filters of a listing: name, value, and the address without the filter."""
    found = []
    for name, value in chosen.given.items():
        if name == "cell" or (name == "hours" and not chosen.tried):
            continue
        shown, without = value, {name: None}
        if name == "rollout":
            entry = ask.service.fleet.rollouts.get(value)
            shown = f"of {entry.rollout.plan.release.version}" if entry else value[:8]
            without["cell"] = None
            if chosen.cell:
                wave, stage, count = (chosen.cell.split(".") + ["", "", ""])[:3]
                where = [_number_label("wave", wave), _number_label("stage", stage)]
                shown = ", ".join(filter(None, (shown, *where, count)))
        elif name == "release" and value in releases:
            shown = releases[value].row["version"]
        elif name == "hours":
            shown = f"last {value}"
        elif name == "cause":
            number = parse_decimal(value, 1000)
            shown = value if number is None else RESET_CAUSES.get(number, value)
        found.append((name.replace("_", " "), shown, chosen.href(**without)))
    return found
