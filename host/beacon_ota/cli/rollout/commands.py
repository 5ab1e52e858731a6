"""The commands of ``beacon-ota rollout``."""

from typing import TYPE_CHECKING, Annotated

import typer

from beacon_ota.cli._support import unconfirmed
from beacon_ota.cli._support.completion import complete_names, complete_words
from beacon_ota.cli._support.cost import print_cost, read_cost
from beacon_ota.cli._support.display import localize_times, print_listing, redraw_until
from beacon_ota.cli._support.options import (
    EveryOption,
    JsonOption,
    ReasonOption,
    Server,
    WatchOption,
    YesOption,
    expand_groups,
)
from beacon_ota.cli._support.prompts import confirm_action
from beacon_ota.cli.rollout.plan import PlanOptions
from beacon_ota.cli.rollout.views import (
    build_view,
    print_summary,
    print_timeline,
    print_uncovered,
    print_waits,
    summarize_rollout,
)
from beacon_ota.console import output
from beacon_ota.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Group

    from beacon_ota.client import Client, Json

UNSTORED = 5  # exit code: the rollout is stopped, and the database has not stored that yet

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Plan, start, watch and stop rollouts."
)

RolloutId = Annotated[
    str,
    typer.Argument(help="Rollout id, or its beginning.", autocompletion=complete_names("rollout")),
]
ReleaseName = Annotated[
    str,
    typer.Argument(
        help="Release: id, version, or device_type/version.",
        autocompletion=complete_names("release"),
    ),
]
_COLUMNS = ("rollout_id", "name", "status", "reason", "share", "healthy", "failed", "created")
_TRANSITION_COLUMNS = ("at", "kind", "wave", "stage", "reason", "detail", "actor")
_ATTEMPT_COLUMNS = (
    "beacon_id",
    "wave",
    "stage",
    "n",
    "result",
    "failed_in",
    "code",
    "taken_at",
)
_LIVE_STATUSES = ("scheduled", "active", "paused")
_STOP_ACTIONS = ("pause", "halt", "abort")


@app.command("create")
@expand_groups
def create_rollout(
    release: ReleaseName,
    *,
    name: Annotated[str, typer.Option(help="For people.")] = "",
    plan: PlanOptions,
    server: Server,
    json: JsonOption = False,
) -> None:
    """Start a rollout."""
    body = plan.read_plan()
    client = server.client
    firmware = client.find_firmware(release)
    _warn_before_start(client, firmware)
    done = client.create_rollout(
        firmware["firmware_id"],
        body,
        name=name or None,
        start_at=plan.parse_start(),
        seed=plan.seed,
    )
    if json:
        output.print_json(done)
    else:
        print_summary(done)
        print_uncovered(done, plan.preset if plan.file is None else None)
        print_waits(client.get_rollout(done["rollout_id"]))


@app.command("plan")
@expand_groups
def plan_rollout(
    release: ReleaseName,
    *,
    plan: PlanOptions,
    each: Annotated[bool, typer.Option("--beacons", help="Name every beacon.")] = False,
    server: Server,
    json: JsonOption = False,
) -> None:
    """Show who would get a release when, and what it costs them; nothing is started."""
    body = plan.read_plan()
    firmware_id = server.client.find_firmware(release)["firmware_id"]
    found = server.client.plan_rollout(
        firmware_id, body, start_at=plan.parse_start(), seed=plan.seed
    )
    if json:
        output.print_json({**found, "cost": read_cost(server.client, firmware_id)})
        return
    print_timeline(found, each)
    print_cost(server.client, firmware_id)


@app.command("list")
@expand_groups
def list_rollouts(
    status: Annotated[
        str | None,
        typer.Option(
            help="Only these: active, halted, …",
            autocompletion=complete_words(
                "scheduled", "active", "paused", "halted", "completed", "aborted"
            ),
        ),
    ] = None,
    watch: WatchOption = False,
    every: EveryOption = 2.0,
    *,
    server: Server,
    json: JsonOption = False,
) -> None:
    """List rollouts, newest first."""
    client = server.client
    if json:
        output.print_json(client.list_rollouts(status=status))
        return

    def list_rows() -> list["Json"]:
        return [summarize_rollout(row) for row in client.list_rollouts(status=status)]

    print_listing(list_rows, _COLUMNS, watch=watch, every_s=every)


@app.command("show")
@expand_groups
def show_rollout(
    rollout_id: RolloutId,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Until it has ended.")] = False,
    every: EveryOption = 2.0,
    *,
    server: Server,
    json: JsonOption = False,
) -> None:
    """Show a rollout: its waves, what each waits for, and what has happened."""
    client = server.client
    full_id = _find_rollout_id(client, rollout_id)
    found = client.get_rollout(full_id)
    if json:
        output.print_json(found)
        return
    if watch:

        def draw_rollout() -> "Group":
            nonlocal found
            found = client.get_rollout(full_id)
            return build_view(found)

        redraw_until(lambda: found["status"] not in _LIVE_STATUSES, draw_rollout, every_s=every)
    else:
        output.console.print(build_view(found))
    print_uncovered(found)
    transitions = localize_times(found["transitions"], "at")
    output.print_rows(transitions, _TRANSITION_COLUMNS, as_json=False, title="history")


@app.command("attempts")
@expand_groups
def list_attempts(rollout_id: RolloutId, *, server: Server, json: JsonOption = False) -> None:
    """List a rollout's attempts, for a report."""
    client = server.client
    rows = list(client.list_attempts(_find_rollout_id(client, rollout_id)))
    shown = rows if json else localize_times(rows, "taken_at")
    output.print_rows(shown, _ATTEMPT_COLUMNS, as_json=json)


@app.command("pause")
@expand_groups
def pause_rollout(
    rollout_id: RolloutId, reason: ReasonOption = "", *, server: Server, json: JsonOption = False
) -> None:
    """Offer the release to nobody new; what is under way goes on."""
    _post_action(server.client, rollout_id, "pause", reason, json)


@app.command("resume")
@expand_groups
def resume_rollout(
    rollout_id: RolloutId,
    reason: ReasonOption = "",
    yes: YesOption = False,
    *,
    server: Server,
    json: JsonOption = False,
) -> None:
    """Go on after a pause or a halt; after a halt the failures so far are accepted."""
    client = server.client
    seen = client.get_rollout(_find_rollout_id(client, rollout_id))
    if seen["status"] == "halted":
        confirm_action(f"It was halted ({seen['reason']}). Accept that and go on?", yes)
    _post_action(client, seen["rollout_id"], "resume", reason, json, revision=seen["revision"])


@app.command("halt")
@expand_groups
def halt_rollout(
    rollout_id: RolloutId, reason: ReasonOption = "", *, server: Server, json: JsonOption = False
) -> None:
    """Withhold the release from everybody who is not rebooting into it yet. Asks nothing.

    Names the mirrors that have not confirmed within ten seconds that they act on it.
    """
    _post_action(server.client, rollout_id, "halt", reason, json)


@app.command("abort")
@expand_groups
def abort_rollout(
    rollout_id: RolloutId,
    reason: ReasonOption = "",
    yes: YesOption = False,
    *,
    server: Server,
    json: JsonOption = False,
) -> None:
    """End a rollout for good."""
    confirm_action(f"End the rollout {rollout_id} for good?", yes)
    _post_action(server.client, rollout_id, "abort", reason, json)


@app.command("advance")
@expand_groups
def advance_rollout(
    rollout_id: RolloutId,
    wave: Annotated[int | None, typer.Option(min=0, help="Which; default: the first open.")] = None,
    reason: ReasonOption = "",
    yes: YesOption = False,
    *,
    server: Server,
    json: JsonOption = False,
) -> None:
    """Open the next stage now, without waiting for sample or soak."""
    client = server.client
    seen = client.get_rollout(_find_rollout_id(client, rollout_id))
    confirm_action("Open the next stage without waiting?", yes)
    _post_action(
        client, seen["rollout_id"], "advance", reason, json, wave=wave, revision=seen["revision"]
    )


def _warn_before_start(client: "Client", firmware: "Json") -> None:
    """Say on stderr what a rollout of this release probably is not meant to be."""
    version = f"{firmware['device_type']}/{firmware['version']}"
    if firmware["state"] == "testing":
        output.print_markup(
            "[yellow]{} is testing: only beacons on the channel beta get it. For all of them: "
            "beacon-ota release promote {}[/]",
            version,
            version,
            to=output.error_console,
        )
    for one in client.list_rollouts():
        if one["firmware_id"] == firmware["firmware_id"] and one["status"] in _LIVE_STATUSES:
            output.print_markup(
                "[yellow]there is a rollout of {} already, {}: beacon-ota rollout show {}[/]",
                version,
                one["status"],
                one["rollout_id"],
                to=output.error_console,
            )


def _post_action(
    client: "Client",
    rollout_id: str,
    action: str,
    reason: str,
    json: bool,
    *,
    wave: int | None = None,
    revision: int | None = None,
) -> None:
    """Carry out an action on a rollout, and print the rollout afterwards.

    Raises:
        typer.Exit: ``UNSTORED``, after the output.
    """
    full_id = _find_rollout_id(client, rollout_id)
    done = client.post_rollout_action(full_id, action, reason, wave, revision)
    stored = done.get("stored", True)
    if action in _STOP_ACTIONS and stored:  # an unstored stop cannot be confirmed yet
        unconfirmed.wait_for_mirrors(done, lambda: client.get_rollout(done["rollout_id"]))
    if json:
        output.print_json(done)
    else:
        print_summary(done)
        if done.get("unconfirmed"):
            output.console.print(unconfirmed.describe_waiting(done["unconfirmed"]))
    if not stored:
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


def _find_rollout_id(client: "Client", beginning: str) -> str:
    """Return the whole id of the rollout whose id begins like this.

    A whole id is returned without a look-up, which would need the server's database.

    Raises:
        UsageError: ``rollout_unknown``, ``rollout_ambiguous``.
    """
    if len(beginning) == 24:
        return beginning
    found = [
        row["rollout_id"]
        for row in client.list_rollouts(begins=beginning[:24], limit=1000)
        if row["rollout_id"].startswith(beginning)
    ]
    if len(found) != 1:
        raise UsageError(
            "rollout_unknown" if not found else "rollout_ambiguous",
            f"the ids of {len(found)} rollouts begin with {beginning!r}: name more of it"
            if found
            else f"No rollout's id begins with {beginning!r}. `rollout list` shows them.",
            found=found or None,
        )
    return found[0]
