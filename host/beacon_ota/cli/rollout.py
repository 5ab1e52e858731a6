"""``beacon-ota rollout``: plan, start, watch and stop."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from beacon_ota.cli import unconfirmed
from beacon_ota.cli._support import remote
from beacon_ota.cli._support.remote import (
    EveryOption,
    JsonOption,
    ReasonOption,
    TokenOption,
    UrlOption,
    WatchOption,
    YesOption,
)
from beacon_ota.console import output
from beacon_ota.errors import UsageError

UNSTORED = 5  # exit code: it is stopped, and the database has not taken that yet
app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Plan, start, watch and stop rollouts."
)

Id = Annotated[
    str,
    typer.Argument(help="Rollout id, or its beginning.", autocompletion=remote.known("rollout")),
]
Release = Annotated[
    str,
    typer.Argument(
        help="Release: id, version, or device_type/version.",
        autocompletion=remote.known("release"),
    ),
]
PresetOption = Annotated[
    str,
    typer.Option(
        help="canary, geographic, emergency or all-at-once.",
        autocompletion=remote.words("canary", "geographic", "emergency", "all-at-once"),
    ),
]
FileOption = Annotated[
    Path | None, typer.Option("--file", "-f", help="Plan in full, TOML or JSON.", dir_okay=False)
]
BuildingOption = Annotated[
    list[str] | None,
    typer.Option(
        "--building",
        help="geographic: in this order; repeatable.",
        autocompletion=remote.known("site"),
    ),
]
StartOption = Annotated[str | None, typer.Option(help="2026-03-02T22:00Z [default: now]")]
SeedOption = Annotated[
    str | None, typer.Option(help="From rollout plan: the same beacons, stage by stage.")
]
_COLUMNS = ("rollout_id", "name", "status", "reason", "progress", "healthy", "failed", "created")
_WAVE = ("wave", "stage", "share", "healthy", "failed", "open", "waiting", "away", "waits_for")
_TRANSITION = ("at", "kind", "wave", "stage", "reason", "detail", "actor")
_LIVE = ("scheduled", "active", "paused")
_STOPS = ("pause", "halt", "abort")


@app.command()
def create(
    release: Release,
    preset: PresetOption = "canary",
    file: FileOption = None,
    building: BuildingOption = None,
    name: Annotated[str, typer.Option(help="For people.")] = "",
    window: Annotated[str | None, typer.Option(help="Instead of the buildings' own.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="At once per building.")] = None,
    start: StartOption = None,
    seed: SeedOption = None,
    url: UrlOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Start a rollout."""
    client = remote.client(url, token)
    plan = _plan(preset, file, building, window, concurrency)
    firmware = client.find_firmware(release)["firmware_id"]
    done = client.create_rollout(
        firmware, plan, name=name or None, start_at=_start(start), seed=seed
    )
    if json:
        output.print_json(done)
    else:
        _summary(done)
        _uncovered(done, preset if file is None else None)


@app.command()
def plan(
    release: Release,
    preset: PresetOption = "canary",
    file: FileOption = None,
    building: BuildingOption = None,
    window: Annotated[str | None, typer.Option(help="Instead of the buildings' own.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="At once per building.")] = None,
    start: StartOption = None,
    seed: SeedOption = None,
    each: Annotated[bool, typer.Option("--beacons", help="Name every beacon.")] = False,
    url: UrlOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Show who would get a release when, if all went well; nothing is started."""
    client = remote.client(url, token)
    order = _plan(preset, file, building, window, concurrency)
    firmware = client.find_firmware(release)["firmware_id"]
    found = client.plan_rollout(firmware, order, start_at=_start(start), seed=seed)
    if json:
        output.print_json(found)
        return
    _timeline(found, each)


@app.command("list")
def listing(
    status: Annotated[
        str | None,
        typer.Option(
            help="Only these: active, halted, …",
            autocompletion=remote.words(
                "scheduled", "active", "paused", "halted", "completed", "aborted"
            ),
        ),
    ] = None,
    watch: WatchOption = False,
    every: EveryOption = 2.0,
    url: UrlOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """List rollouts, newest first."""
    client = remote.client(url, token)
    if json:
        output.print_json(client.list_rollouts(status=status))
        return

    def rows() -> list[dict[str, Any]]:
        return [_row(row) for row in client.list_rollouts(status=status)]

    remote.listing(rows, _COLUMNS, watched=watch, every_s=every)


@app.command()
def show(
    rollout_id: Id,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Until it has ended.")] = False,
    every: EveryOption = 2.0,
    url: UrlOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Show a rollout: its waves, what each waits for, and what has happened."""
    client = remote.client(url, token)
    known = _find(client, rollout_id)
    found = client.get_rollout(known)
    if json:
        output.print_json(found)
        return
    if watch:

        def draw():
            nonlocal found
            found = client.get_rollout(known)
            return _picture(found)

        remote.watch(draw, every_s=every, done=lambda: found["status"] not in _LIVE)
    else:
        output.console.print(_picture(found))
    _uncovered(found)
    output.print_rows(
        remote.shorten(found["transitions"], "at"), _TRANSITION, as_json=False, title="history"
    )


@app.command()
def attempts(
    rollout_id: Id, url: UrlOption = None, token: TokenOption = None, json: JsonOption = False
) -> None:
    """List a rollout's attempts, for a report."""
    client = remote.client(url, token)
    rows = list(client.list_attempts(_find(client, rollout_id)))
    columns = ("beacon_id", "wave", "stage", "n", "result", "failed_in", "code", "taken_at")
    output.print_rows(rows if json else remote.shorten(rows, "taken_at"), columns, as_json=json)


@app.command()
def pause(
    rollout_id: Id,
    reason: ReasonOption = "",
    url: UrlOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Offer the release to nobody new; what is under way goes on."""
    _move(rollout_id, "pause", reason, url, token, json)


@app.command()
def resume(
    rollout_id: Id,
    reason: ReasonOption = "",
    yes: YesOption = False,
    url: UrlOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Go on after a pause or a halt; after a halt the failures so far are accepted."""
    client = remote.client(url, token)
    known = client.get_rollout(_find(client, rollout_id))
    if known["status"] == "halted":
        remote.confirm(f"It was halted ({known['reason']}). Accept that and go on?", yes)
    _move(known["rollout_id"], "resume", reason, url, token, json, revision=known["revision"])


@app.command()
def halt(
    rollout_id: Id,
    reason: ReasonOption = "",
    url: UrlOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Withhold the release from everybody who is not rebooting into it yet. Asks nothing.

    Names the mirrors that have not confirmed within ten seconds that they act on it.
    """
    _move(rollout_id, "halt", reason, url, token, json)


@app.command()
def abort(
    rollout_id: Id,
    reason: ReasonOption = "",
    yes: YesOption = False,
    url: UrlOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """End a rollout for good."""
    remote.confirm(f"End the rollout {rollout_id} for good?", yes)
    _move(rollout_id, "abort", reason, url, token, json)


@app.command()
def advance(
    rollout_id: Id,
    wave: Annotated[int | None, typer.Option(min=0, help="Which; default: the first open.")] = None,
    reason: ReasonOption = "",
    yes: YesOption = False,
    url: UrlOption = None,
    token: TokenOption = None,
    json: JsonOption = False,
) -> None:
    """Open the next stage now, without waiting for sample or soak."""
    client = remote.client(url, token)
    known = client.get_rollout(_find(client, rollout_id))
    remote.confirm("Open the next stage without waiting?", yes)
    revision = known["revision"]
    _move(known["rollout_id"], "advance", reason, url, token, json, wave, revision)


def _move(
    rollout_id: str,
    verb: str,
    reason: str,
    url: str | None,
    token: str | None,
    json: bool,
    wave: int | None = None,
    revision: int | None = None,
) -> None:
    client = remote.client(url, token)
    done = client.post_rollout_action(_find(client, rollout_id), verb, reason, wave, revision)
    if verb in _STOPS and done.get("stored", True):  # else there is nothing to confirm yet
        unconfirmed.wait(done, lambda: client.get_rollout(done["rollout_id"]))
    if json:
        output.print_json(done)
    else:
        _summary(done)
        if done.get("unconfirmed"):
            output.console.print(unconfirmed.named(done["unconfirmed"]))
    if not done.get("stored", True):
        if not json:
            output.print_markup(
                "[bold yellow]in memory only[/]  it holds; the database has not taken it yet, and "
                "is asked again until it does. {}",
                "A restart knows it, too."
                if done.get("survives_restart")
                else "A restart would forget it: the data folder cannot be written either.",
                to=output.error_console,
            )
        raise typer.Exit(UNSTORED)


def _find(client: Any, rollout_id: str) -> str:
    """Return the id that begins so; a whole one is not looked up: that needs the database."""
    if len(rollout_id) == 24:
        return rollout_id
    found = [
        row["rollout_id"]
        for row in client.list_rollouts(begins=rollout_id[:24], limit=1000)
        if row["rollout_id"].startswith(rollout_id)
    ]
    if len(found) != 1:
        raise UsageError(
            "rollout_unknown" if not found else "rollout_ambiguous",
            f"{len(found)} rollouts begin with {rollout_id!r}",
            found=found or rollout_id,
        )
    return found[0]


def _plan(
    preset: str,
    file: Path | None,
    building: list[str] | None,
    window: str | None,
    concurrency: int | None,
) -> dict[str, Any]:
    plan: dict[str, Any] = remote.read_table(file) if file else {"preset": preset}
    if building:
        plan["buildings"] = building
    if window is not None:
        plan["window"] = window
    if concurrency is not None:
        plan["concurrency"] = concurrency
    return plan


def _start(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            "time_syntax", "not a time", found=text, expected="2026-03-02T22:00Z"
        ) from None
    return (at if at.tzinfo else at.astimezone()).astimezone(UTC).timestamp()


def _row(found: dict[str, Any]) -> dict[str, Any]:
    total = found["total"] or {}
    waves = found["waves"]
    return {
        **found,
        "progress": " ".join(f"{wave['share']:.0%}" for wave in waves),
        "healthy": found["results"].get("success", 0),
        "failed": total.get("failed"),
        "created": remote.moment(found["created_at"]),
    }


def _summary(found: dict[str, Any]) -> None:
    output.print_markup("[bold]{}[/]  {}  {}", found["name"], found["rollout_id"], _status(found))


def _status(found: dict[str, Any]) -> output.Text:
    colour = {"active": "green", "completed": "green", "halted": "bold red"}.get(
        found["status"], "yellow"
    )
    return output.fill_markup(f"[{colour}]{{}}[/]  {{}}", found["status"], found["reason"])


def _picture(found: dict[str, Any]):
    from rich.console import Group
    from rich.table import Table

    table = Table()
    for name in _WAVE:
        table.add_column(name.replace("_", " "))
    for wave in found["waves"]:
        waits = wave.get("waits_for")
        for stage, counts in enumerate(wave.get("counts") or [{}]):
            here = stage == wave["stage"]
            table.add_row(
                output.literal_text(wave["name"]) if stage == 0 else "",
                f"{'▶' if here and not wave['ended_at'] else ' '} {stage + 1}/{wave['stages']}",
                f"{wave['share']:.0%}" if here else "",
                *(str(counts.get(name, "–")) for name in _WAVE[3:8]),
                output.fill_markup("{}: {}", waits["reason"], waits["detail"])
                if here and waits
                else "",
            )
    head = output.fill_markup("[bold]{}[/]  {}", found["name"], _status(found))
    if found.get("unconfirmed"):
        return Group(head, unconfirmed.named(found["unconfirmed"]), table)
    return Group(head, table)


def _uncovered(found: dict[str, Any], preset: str | None = None) -> None:
    """Say how many beacons of other boards a rollout does not cover, and what would."""
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


def _timeline(found: dict[str, Any], each: bool) -> None:
    counts: dict[tuple[Any, Any], list[str]] = {}
    for slot in found["beacons"]:
        if slot["at"] is not None:
            counts.setdefault((slot["wave"], slot["stage"]), []).append(slot["at"])
    names = [wave["name"] for wave in found["plan"]["waves"]]
    rows = [
        {
            "wave": names[wave],
            "stage": stage + 1,
            "beacons": len(times),
            "first": remote.moment(min(times)),
            "last": remote.moment(max(times)),
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
                "at": remote.moment(slot["at"]),
            }
            for slot in sorted(found["beacons"], key=lambda it: (it["at"] or "~", it["beacon_id"]))
        ]
        output.print_rows(slots, ("beacon_id", "wave", "stage", "at", "reason"), as_json=False)
    output.print_markup("ends {}", remote.moment(found["ends_at"]))
    for reason, count in found["left_out"].items():
        output.print_markup("left out: {} ({})", count, reason)
    _uncovered(found)
    output.print_markup("--seed {} starts exactly this", found["seed"])
