"""Tables and lines that show a rollout: one row of a list, its waves, a plan's timeline."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from beacon_ota.cli._support import unconfirmed
from beacon_ota.cli._support.display import local_time
from beacon_ota.console import output

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

    from beacon_ota.client import Json

_WAVE_COLUMNS = (
    "wave",
    "stage",
    "share",
    "healthy",
    "failed",
    "open",
    "waiting",
    "away",
    "waits_for",
)


def summarize_rollout(found: "Json") -> "Json":
    """Return the row of a rollout in a list: the open share of each wave, and the results."""
    total = found["total"] or {}
    waves = found["waves"]
    return {
        **found,
        "share": " ".join(f"{wave['share']:.0%}" for wave in waves),
        "healthy": found["results"].get("success", 0),
        "failed": total.get("failed"),
        "created": local_time(found["created_at"]),
    }


def print_summary(found: "Json") -> None:
    output.print_markup(
        "[bold]{}[/]  {}  {}", found["name"], found["rollout_id"], format_status(found)
    )


def format_status(found: "Json") -> output.Text:
    """Return status and reason of a rollout, coloured."""
    colour = {"active": "green", "completed": "green", "halted": "bold red"}.get(
        found["status"], "yellow"
    )
    return output.fill_markup(f"[{colour}]{{}}[/]  {{}}", found["status"], found["reason"])


def build_view(found: "Json") -> "Group":
    """Return a rollout as a table of its waves, with the mirrors that have not confirmed a stop."""
    from rich.console import Group
    from rich.table import Table

    table = Table()
    for name in _WAVE_COLUMNS:
        table.add_column(name.replace("_", " "))
    for wave in found["waves"]:
        waits = wave.get("waits_for")
        for stage, counts in enumerate(wave.get("counts") or [{}]):
            here = stage == wave["stage"]
            table.add_row(
                output.literal_text(wave["name"]) if stage == 0 else "",
                f"{'▶' if here and not wave['ended_at'] else ' '} {stage + 1}/{wave['stages']}",
                f"{wave['share']:.0%}" if here else "",
                *(str(counts.get(name, "–")) for name in _WAVE_COLUMNS[3:8]),
                output.fill_markup("{}: {}", waits["reason"], waits["detail"])
                if here and waits
                else "",
            )
    head = output.fill_markup("[bold]{}[/]  {}", found["name"], format_status(found))
    parts: list[RenderableType] = [head]
    if found.get("unconfirmed"):
        parts.append(unconfirmed.describe_waiting(found["unconfirmed"]))
    return Group(*parts, table, *map(output.literal_text, describe_waits(found)))


_WAITS = {
    "window": ("waits for its window", "wait for their window"),
    "version": ("has not been heard yet", "have not been heard yet"),
    "channel": (
        "is on the channel stable, and the release is testing",
        "are on the channel stable, and the release is testing",
    ),
    "retry": ("waits for its next attempt", "wait for their next attempt"),
    "paused": ("waits, the rollout is paused", "wait, the rollout is paused"),
    "busy": ("waits for others of its building", "wait for others of their building"),
    "attempts": ("has failed too often", "have failed too often"),
    "blamed": ("calls the release bad", "call the release bad"),
    "quarantined": ("is quarantined", "are quarantined"),
    "withdrawn": ("waits, the release is withdrawn", "wait, the release is withdrawn"),
}


def describe_waits(found: "Json", now: datetime | None = None) -> list[str]:
    """Return a sentence for each group of beacons that a rollout keeps waiting."""
    now = now or datetime.now(UTC)
    told = []
    for one in found.get("waits") or ():
        single, many = _WAITS.get(one["reason"], (f"waits: {one['reason']}",) * 2)
        text = f"{one['beacons']} {single if one['beacons'] == 1 else many}"
        if one["at"]:
            at = datetime.fromisoformat(one["at"])
            verb = "opens" if one["reason"] == "window" else "at"
            text += f", {verb} {_zone_time(at, one['zone'])} in {_format_span(at - now)}"
        told.append(text)
    return told


def _zone_time(at: datetime, zone: str | None) -> str:
    """Return the hour of a time on a zone's clock, with the zone's name."""
    try:
        return f"{at.astimezone(ZoneInfo(zone or 'UTC')):%H:%M} {zone or 'UTC'}"
    except (ValueError, KeyError, OSError):  # a zone that is not known here
        return f"{at.astimezone(UTC):%H:%M} UTC"


def _format_span(span: timedelta) -> str:
    minutes = max(0, -(-int(span.total_seconds()) // 60))
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    parts = [f"{days} d" * (days > 0), f"{hours} h" * (hours > 0), f"{minutes} min" * (minutes > 0)]
    return " ".join(filter(None, parts)) or "a moment"


def print_waits(found: "Json") -> None:
    for text in describe_waits(found):
        output.print_markup("{}", text)


def print_uncovered(found: "Json", preset: str | None = None) -> None:
    """Print how many beacons of other boards a rollout leaves out, and which rollout has them."""
    missed = found.get("not_covered")  # absent once a rollout is over
    if missed is None:
        return
    for one in missed["boards"]:
        output.print_markup(
            "[yellow]not covered: {} beacons of another board, {}[/]",
            one["beacons"],
            one["device_type"],
        )
        if one["rollout_id"] is not None:
            output.print_markup("  beacon-ota rollout show {}   is theirs", one["rollout_id"])
        elif one["release"] is not None:
            more = f" --preset {preset}" if preset in ("emergency", "all-at-once") else ""
            output.print_markup("  beacon-ota rollout create {}{}", one["release"], more)
        else:
            output.print_markup("  there is no release of this version for {}", one["device_type"])
    if missed["questioned"]:
        output.print_markup(
            "[yellow]not covered: {} beacons that say they are another board than they are "
            "registered as[/]",
            missed["questioned"],
        )
        output.print_markup("  beacon-ota beacon list --questioned")


def print_timeline(found: "Json", each: bool) -> None:
    """Print when each stage of a plan begins and ends; with ``each``, every beacon as well."""
    counts: dict[tuple[int, int], list[str]] = {}
    for slot in found["beacons"]:
        if slot["at"] is not None:
            counts.setdefault((slot["wave"], slot["stage"]), []).append(slot["at"])
    names = [wave["name"] for wave in found["plan"]["waves"]]
    rows = [
        {
            "wave": names[wave],
            "stage": stage + 1,
            "beacons": len(times),
            "first": local_time(min(times)),
            "last": local_time(max(times)),
        }
        for (wave, stage), times in sorted(counts.items())
    ]
    output.print_rows(rows, ("wave", "stage", "beacons", "first", "last"), as_json=False)
    if each:
        slots = [
            {
                **slot,
                "wave": "–" if slot["wave"] is None else names[slot["wave"]],
                "stage": "–" if slot["stage"] is None else slot["stage"] + 1,
                "at": local_time(slot["at"]),
            }
            for slot in sorted(found["beacons"], key=lambda it: (it["at"] or "~", it["beacon_id"]))
        ]
        output.print_rows(slots, ("beacon_id", "wave", "stage", "at", "reason"), as_json=False)
    output.print_markup("ends {}", local_time(found["ends_at"]))
    for reason, count in found["left_out"].items():
        output.print_markup("left out: {} ({})", count, reason)
    print_uncovered(found)
    output.print_markup("--seed {} starts exactly this", found["seed"])
