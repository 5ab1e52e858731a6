"""Numbers, times and events in words; pure functions of values."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from beacon_ota.orchestrator.db.tables import Fields

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def format_iso(at: float | None) -> str:
    """Return UTC seconds in ISO 8601, for scripts."""
    return "" if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def format_utc(at: float | None) -> str:
    """Return UTC seconds as text; the page's script replaces it by local time."""
    return "–" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def format_duration(seconds: float | None) -> str:
    """Return a duration in its two largest units: ``3 h 20 min``."""
    if seconds is None:
        return "–"
    left = round(abs(seconds))
    if left == 0:
        return "0 s" if seconds == 0 else f"{round(abs(seconds) * 1000)} ms"
    parts = []
    for size, name in _UNITS:
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {name}")
        elif parts:
            break  # "2 d", not "2 d 5 min"
        if len(parts) == 2:
            break
    return " ".join(parts)


def format_size(count: float | None) -> str:
    """Return bytes: ``1.62 MB``, in powers of ten."""
    if count is None:
        return "–"
    for unit, by in (("MB", 1e6), ("kB", 1e3)):
        if count >= by:
            return f"{count / by:.3g} {unit}"
    return f"{count:g} B"


def format_share(part: float, whole: float) -> str:
    """Return a percentage, never rounded to all or nothing."""
    if not whole:
        return "–"
    found = 100 * part / whole
    if 0 < found < 0.1:
        return "< 0.1 %"
    if 99.9 < found < 100:
        return "> 99.9 %"
    return f"{found:.1f} %".replace(".0 %", " %")


def format_plural(count: int, one: str, many: str = "") -> str:
    """Return a number with its noun."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


# ---- events ----

# The level of each kind of event; "plain" for other kinds.
LEVELS = {
    "attempt.success": "good",
    "attempt.failed": "bad",
    "attempt.rolled_back": "bad",
    "attempt.lost": "bad",
    "attempt.undone": "bad",
    "rollout.halted": "bad",
    "rollout.aborted": "bad",
    "rollout.completed": "good",
    "rollout.paused": "warn",
    "rollout.clock_back": "warn",
    "rollout.clock_ahead": "warn",
    "beacon.quarantined": "warn",
    "beacon.withheld": "warn",
    "beacon.questioned": "warn",
    "beacon.refused": "warn",
    "beacon.removed": "warn",
    "firmware.damaged": "bad",
    "firmware.deprecated": "warn",
    "webhook.given_up": "bad",
    "mirror.halted": "bad",
    "mirror.parted": "warn",
    "mirror.removed": "warn",
    "mirror.unhealthy": "bad",
    "mirror.healthy": "good",
    "auth.refused": "warn",
}
# Kinds that screen readers announce, and that every open page shows in a corner.
SPOKEN = frozenset(
    kind for kind in LEVELS if not kind.startswith(("attempt.", "auth.", "beacon.removed"))
) | {"attempt.lost", "attempt.undone", "rollout.resumed", "rollout.stage_opened", "rollout.started"}

_ROLLOUTS = {
    "created": "ordered",
    "started": "has started",
    "completed": "is complete",
    "halted": "is halted",
    "paused": "is paused",
    "resumed": "goes on",
    "aborted": "is aborted",
    "clock_back": "begins its waits anew: the clock went back",
    "clock_ahead": "begins its waits anew: the clock was set ahead",
    "retired": "is over: newer ones serve everybody that it was for",
}
_BEACONS = {
    "created": "is registered",
    "changed": "was changed",
    "rekey": "gets a new key",
    "rekeyed": "uses its new key",
    "retyped": "is registered as another board",
    "questioned": "says that it is another board than it is registered as",
    "refused": "is refused at every poll",
    "quarantined": "is in quarantine",
    "unquarantined": "is out of quarantine",
    "removed": "was removed",
    "reported": "has sent a report",
}
_UNHEALTHY = {
    "silent": "is out of reach",
    "refused": "is refused",
    "failing": "fails",
    "behind": "does not follow",
    "clock": "has a clock that is off",
}
_RELEASES = {
    "uploaded": "was uploaded",
    "renewed": "has a new manifest",
    "promoted": "is stable",
    "deprecated": "is deprecated",
    "damaged": "is withdrawn: its bytes are damaged",
}

# Transitions of a rollout: description and level.
TRANSITIONS = {
    "started": ("Started", "plain"),
    "wave_opened": ("Wave opened", "plain"),
    "stage_opened": ("Stage opened", "plain"),
    "sampled": ("Sample complete", "plain"),
    "wave_completed": ("Wave complete", "good"),
    "completed": ("Complete", "good"),
    "halted": ("Halted", "bad"),
    "paused": ("Paused", "warn"),
    "resumed": ("Resumed", "plain"),
    "aborted": ("Aborted", "bad"),
    "clock_back": ("The clock went back", "warn"),
    "clock_ahead": ("The clock was set ahead", "warn"),
    "retired": ("Over: newer rollouts serve everybody", "plain"),
}


class EventDescription(NamedTuple):
    """An event in words.

    Attributes:
        level: good, bad, warn, plain.
        what: the subject.
        href: the subject's page, "" without one.
        then: what happened to the subject.
        because: the reason that a person or the engine gave.
        by: the name of the actor.
    """

    level: str
    what: str
    href: str
    then: str
    because: str
    by: str

    @property
    def text(self) -> str:
        """The sentence without its link."""
        return f"{self.what} {self.then}" + (f": {self.because}" if self.because else "")


def describe_event(event: Fields, versions: Mapping[str, str]) -> EventDescription:
    """Return an event in words.

    Args:
        versions: versions of releases and rollouts, by their ids.
    """
    kind, subject = str(event["kind"]), str(event["subject"])
    group, _, verb = kind.partition(".")
    data: Fields = event["data"]
    level = LEVELS.get(kind, "plain")
    by = str(data.get("by", ""))
    because = ": ".join(
        str(data[name]) for name in ("reason", "detail") if data.get(name) and group != "attempt"
    )
    because = because.removeprefix("by_hand: ").replace("by_hand", "")
    if group == "attempt":
        beacon = str(data.get("beacon", ""))
        version = str(data.get("version") or versions.get(str(data.get("firmware")), "a release"))
        why = "/".join(str(data[name]) for name in ("failed_in", "code") if data.get(name))
        then = {
            "success": f"runs {version}",
            "failed": f"failed at {version}",
            "rolled_back": f"went back from {version}",
            "lost": f"is lost: it took {version} and fell silent",
            "undone": f"had confirmed {version}, and went back from it",
            "stopped": f"was called back from {version}",
            "offered": f"is offered {version}",
            "taken": "has begun its update",
            "downloading": f"is downloading, {data.get('progress', 0)} %",
            "verifying": "is verifying its download",
            "rebooting": "is rebooting into its update",
        }.get(verb, f"{verb} {version}")
        because = " – ".join(filter(None, (why, str(data.get("detail") or ""))))
        return EventDescription(level, beacon, f"/beacons/{beacon}", then, because, by)
    if group == "rollout":
        then = _ROLLOUTS.get(verb) or _describe_stage(verb, data)
        what = f"Rollout of {versions.get(subject, subject[:8])}"
        return EventDescription(level, what, f"/rollouts/{subject}", then, because, by)
    if group == "beacon":
        then = _BEACONS.get(verb, verb)
        if verb in ("retyped", "questioned") and data.get("device_type"):
            then = {
                "retyped": f"is registered as {data['device_type']}, and was as {data.get('was')}",
                "questioned": f"says that it is {data.get('says')}, and is registered as "
                f"{data['device_type']}",
            }[verb]
        elif verb == "refused" and data.get("code"):
            then = f"is refused at every poll, {data['code']}"
        if verb == "withheld":
            then = f"is withheld from {data.get('version')} after {data.get('tries')} attempts"
            if data.get("why") == "blamed":
                then = f"has called {data.get('version')} bad, and is withheld from it"
        return EventDescription(level, subject, f"/beacons/{subject}", then, because, by)
    if group == "firmware":
        what = f"Release {versions.get(subject, subject[:8])}"
        return EventDescription(
            level, what, f"/releases/{subject}", _RELEASES.get(verb, verb), because, by
        )
    if group == "site":
        return EventDescription(
            level, f"Site {subject}", f"/beacons?site={subject}", f"was {verb}", because, by
        )
    if group == "webhook":
        then = {"given_up": "gave up on a delivery"}.get(verb, f"was {verb}")
        what = f"Webhook {data.get('name') or subject}"
        return EventDescription(level, what, "/webhooks", then, because, by)
    if group == "mirror":
        if verb == "parted":
            then = "tells all that it knows again"
            return EventDescription(level, f"Mirror {data.get('mirror')}", "/", then, because, by)
        if verb != "halted":
            then = {
                "unhealthy": _UNHEALTHY.get(str(data.get("word")), "is unhealthy"),
                "healthy": "is well again",
            }.get(verb, f"was {verb}")
            return EventDescription(level, f"Mirror {subject}", "/", then, because, by)
        what = f"Rollout of {versions.get(subject, subject[:8])}"
        where = f"mirror {data['mirror']}" if data.get("mirror") else "this mirror"
        return EventDescription(
            level, what, f"/rollouts/{subject}", f"is halted at {where}", because, by
        )
    if group == "token":
        return EventDescription(level, f"Token {subject}", "", f"was {verb}", because, by)
    return EventDescription(level, subject, "", kind, because, by)


def _describe_stage(verb: str, data: Fields) -> str:
    wave = f"wave {int(data['wave']) + 1}" if data.get("wave") is not None else ""
    stage = f"stage {int(data['stage']) + 1}" if data.get("stage") is not None else ""
    return {
        "wave_opened": f"{wave} is open",
        "stage_opened": f"{wave}, {stage} is open",
        "sampled": f"{wave}, {stage} has its sample",
        "wave_completed": f"{wave} is complete",
    }.get(verb, verb)
