"""The first page: versions, map, rollouts under way, recent failures and events."""

import math

from beacon_ota.orchestrator.api import mirrors as mirror_api
from beacon_ota.orchestrator.dashboard import rollouts
from beacon_ota.orchestrator.dashboard.fleet import (
    BADGE_NAMES,
    BADGES,
    FLAGS,
    HEALTH_LABELS,
    Fleet,
    group_by_building,
    load_fleet,
    render_cells,
)
from beacon_ota.orchestrator.dashboard.logs import collapse_events, describe_events, versions_of
from beacon_ota.orchestrator.dashboard.page_base import Page, PageRequest
from beacon_ota.orchestrator.db.tables import events, firmwares, outcomes, sites, webhooks
from beacon_ota.orchestrator.db.tables.outcomes import OutcomeFilter
from beacon_ota.orchestrator.rollout.windows import next_window

_NEWS = 60  # events read; equal ones in a row become one line
_LINES = 12
_LATELY_S = 7 * 86400.0
_SMELLS = 6
_CELLS = 3000  # beacons drawn one by one; floors of larger fleets are bars


def show_overview(ask: PageRequest) -> Page:
    """The fleet at a glance."""
    seen = load_fleet(ask.service, ask.now)
    news = ask.read(events.list_latest, _NEWS)
    by = ask.query.get("by", "")
    return Page(
        "overview.html",
        "Fleet",
        {
            "fleet": seen,
            "tiles": build_tiles(seen),
            "buildings": group_by_building(seen.rows, ask.read(sites.list_all)),
            "windows": _next_windows(ask, {row.site for row in seen.rows}),
            "badges": BADGES,
            "names": BADGE_NAMES,
            "cells": render_cells,
            "smells": ask.read(outcomes.count_by_reason, OutcomeFilter(since=ask.now - _LATELY_S)),
            "versions": versions_of(ask),
            "standings": HEALTH_LABELS,
            "ranks": {(one.device_type, one.version): one.rank for one in seen.versions},
            "dense": len(seen.rows) > _CELLS,
            "by": "version" if by == "version" else "state",
            "rollouts": rollouts.list_under_way(ask),
            "news": collapse_events(describe_events(news, versions_of(ask)))[:_LINES],
            "most": _SMELLS,
            "releases": ask.read(firmwares.count),
            "mirrors": ask.read(mirror_api.list_serialized, ask.now),
            "given_up": ask.read(webhooks.count_given_up),
        },
        live="*",
    )


def build_tiles(seen: Fleet) -> list[tuple[str, int, dict[str, str], str]]:
    """Return the numbers on top: name, count, filters of the listing behind it, badge."""
    states = seen.states
    current = sum(row.state == "valid" and not row.behind for row in seen.rows)
    found = [
        ("beacons", len(seen.rows), {}, "plain"),
        (BADGE_NAMES["valid"], current, {"state": "valid", "look": "current"}, "valid"),
        ("behind", states["valid"] - current, {"state": "valid", "look": "behind"}, "behind"),
    ]
    for state in (
        "updating",
        "trial",
        "failed",
        "silent",
        "unseen",
        "refused",
        "board",
        "quarantined",
    ):
        if state in ("refused", "board") and not states[state]:
            continue
        found.append((BADGE_NAMES.get(state, state), states[state], {"state": state}, state))
    for flag in FLAGS:
        if seen.flags[flag]:
            found.append((BADGE_NAMES.get(flag, flag), seen.flags[flag], {"flag": flag}, "failed"))
    return found


def _next_windows(ask: PageRequest, paths: set[str]) -> dict[str, tuple[str, float | None, bool]]:
    """Return by building: time zone, next change of its window (UTC seconds), if it is open."""
    found = {}
    for path in paths:
        place = ask.service.fleet.places.place_of(path)
        start, end = next_window(place.window, ask.now)
        if math.isinf(start):  # always, or never
            found[place.building] = (place.window.zone, None, start < 0)
        else:
            now_open = start <= ask.now
            found[place.building] = (place.window.zone, end if now_open else start, now_open)
    return found
