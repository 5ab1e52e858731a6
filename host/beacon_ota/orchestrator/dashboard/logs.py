"""The pages of the past: events for every role; webhooks and audit log for administrators."""

from typing import Any

from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.dashboard import messages
from beacon_ota.orchestrator.dashboard.page_base import Page, PageRequest
from beacon_ota.orchestrator.db.tables import Fields, audit, events, webhooks
from beacon_ota.orchestrator.db.tables.audit import AuditError
from beacon_ota.orchestrator.http.problems import Problem

_PAGE = 100
_GROUPS = ("rollout", "attempt", "beacon", "firmware", "site", "token", "webhook", "mirror")


def show_activity(ask: PageRequest) -> Page:
    """The stored events, newest first."""
    group = ask.query.get("kind", "")
    group = group if group in _GROUPS else ""
    before = ask.number("before", 0)
    rows = ask.read(events.list_before, before or None, f"{group}." if group else "", _PAGE)
    return Page(
        "activity.html",
        "Activity",
        {
            "news": describe_events(rows, versions_of(ask)),
            "group": group,
            "groups": _GROUPS,
            "before": before,
            "next": rows[0]["id"] if len(rows) == _PAGE else None,
        },
        live="" if before else "*",
    )


def show_audit_log(ask: PageRequest) -> Page:
    """The audit log, and on request the verification of its chain."""
    _require_admin(ask)
    given = {name: ask.query.get(name, "") for name in ("action", "by", "target")}
    before = ask.number("before", 0)
    rows = ask.read(_read_entries, before, {key: value or None for key, value in given.items()})
    verified: Any = None
    if "verify" in ask.query:
        try:
            verified = ask.read(audit.verify_chain)
        except AuditError as error:
            verified = error
    return Page(
        "audit.html",
        "Audit log",
        {
            "entries": rows,
            "given": given,
            "filters": {key: value for key, value in given.items() if value},
            "next": rows[-1]["seq"] if len(rows) == _PAGE else None,
            "before": before,
            "verified": verified,
            "broken": isinstance(verified, AuditError),
        },
        live="" if before else "*",
    )


def show_webhooks(ask: PageRequest) -> Page:
    """Webhooks with their deliveries."""
    _require_admin(ask)
    rows = ask.read(webhooks.list_all)
    logs = {row["id"]: ask.read(webhooks.list_deliveries, row["id"], 20) for row in rows}
    return Page("webhooks.html", "Webhooks", {"hooks": rows, "logs": logs}, live="*")


def describe_events(
    rows: list[Fields], versions: dict[str, str]
) -> list[tuple[Fields, messages.EventDescription]]:
    """Return events with their descriptions, newest first."""
    return [(row, messages.describe_event(row, versions)) for row in reversed(rows)]


def collapse_events(
    rows: list[tuple[Fields, messages.EventDescription]],
) -> list[tuple[Fields, messages.EventDescription]]:
    """Return the same list with equal good events of several beacons in a row as one line."""
    found: list[tuple[Fields, messages.EventDescription]] = []
    counts: list[int] = []
    for event, one in rows:
        if found and one.level == "good" and not one.because:
            first, last = found[-1]
            if (first["kind"], last.then) == (event["kind"], one.then) and last.what != one.what:
                counts[-1] += 1
                continue
        found.append((event, one))
        counts.append(0)
    return [
        (
            event,
            one._replace(
                then=f"and {messages.format_plural(count, 'other')} {_pluralize(one.then)}"
            ),
        )
        if count
        else (event, one)
        for (event, one), count in zip(found, counts, strict=True)
    ]


def _pluralize(then: str) -> str:
    return then.replace("runs ", "run ", 1)


def versions_of(ask: PageRequest) -> dict[str, str]:
    """Return the versions of releases and rollouts, by their ids."""
    return known_versions(ask.service)


def known_versions(service: Service) -> dict[str, str]:
    """Return by id the versions of releases, and of the rollouts in memory."""
    view = service.fleet
    found = {key: release.row["version"] for key, release in view.releases.copy().items()}
    for key, entry in view.rollouts.copy().items():
        found[key] = entry.rollout.plan.release.version
    return found


def _read_entries(conn, before: int, given: Fields) -> list[Fields]:
    return audit.list_entries(
        conn,
        before=before or None,
        limit=_PAGE,
        action=given["action"],
        actor=given["by"],
        target=given["target"],
        newest=True,
    )


def _require_admin(ask: PageRequest) -> None:
    if not ask.admin:
        raise Problem(
            403,
            "role_too_low",
            "this page is for administrators",
            found=ask.actor.role,
            expected="admin",
        )
