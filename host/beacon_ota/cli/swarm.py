"""``beacon-ota swarm``: thousands of simulated beacons against an orchestrator."""

from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from beacon_ota.cli._support.display import print_fields
from beacon_ota.cli._support.options import JsonOption, Server, expand_groups
from beacon_ota.console import output
from beacon_ota.errors import InputError, UsageError

if TYPE_CHECKING:
    from beacon_ota.swarm.scenario import Scenario

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Simulate thousands of beacons against an orchestrator.",
)


@app.command("list")
def list_scenarios(as_json: JsonOption = False) -> None:
    """List the scenarios that come with the program."""
    from beacon_ota.swarm import scenario

    rows = [
        {"scenario": name, "beacons": one.beacons, "about": one.about}
        for name in scenario.packaged_names()
        for one in (scenario.load_scenario(name),)
    ]
    output.print_rows(rows, ("scenario", "beacons", "about"), as_json=as_json)


@app.command("run")
@expand_groups
def run_scenario(
    name: Annotated[
        str, typer.Argument(metavar="SCENARIO", help="A name out of `swarm list`, or a TOML file.")
    ],
    *,
    server: Server,
    own: Annotated[
        bool, typer.Option("--own", help="Start an orchestrator for it, and end it afterwards.")
    ] = False,
    beacons: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="So many instead of the scenario's.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option("--for", min=1, help="End after so many seconds of their time.")
    ] = None,
    time_scale: Annotated[
        int | None,
        typer.Option(
            min=1, max=1000, help="How fast their clocks run: as the orchestrator's --time-scale."
        ),
    ] = None,
    prefix: Annotated[
        str | None, typer.Option(help="Ids are this and a number; by default a new one each time.")
    ] = None,
    device_type: Annotated[str, typer.Option(help="What they are.")] = "esp32c3",
    seed: Annotated[str, typer.Option(help="The same one lets the same beacons fail.")] = "1",
    as_json: JsonOption = False,
) -> None:
    """Run a scenario, then compare what the beacons lived through with what was counted.

    The beacons are registered under ids, sites and a tag of their own, and stay registered; its
    releases are rolled out to that tag alone. Exit code 1: the counts do not agree, or the
    scenario's expectations did not come true.
    """
    from beacon_ota.swarm import local_server as alone
    from beacon_ota.swarm.fleet import Swarm
    from beacon_ota.swarm.fleet import run_swarm as simulate

    plan = _adjust_scenario(name, beacons, seconds, time_scale, own)
    if own and (server.url or server.token):
        raise UsageError("swarm_own", "--own starts an orchestrator: --url is of no use")
    with alone.run_local_server(plan) if own else nullcontext() as started:
        if started is not None:
            url, token = started.url, started.token
        else:
            url, token = server.client.url, server.client.token
        if not token:
            raise UsageError("token_missing", "registering beacons needs a token: --token")
        more: dict[str, Any] = {} if prefix is None else {"prefix": _check_prefix(prefix)}
        with LiveView(plan, quiet=as_json) as screen:
            fleet = Swarm(
                plan,
                url,
                token,
                device_type=device_type,
                seed=seed,
                on_message=screen.print_step,
                on_snapshot=screen.show_snapshot,
                on_enrolled=screen.show_enrolled,
                **more,
            )
            summary = simulate(fleet)
        if started is not None:
            summary["orchestrator"] = started.usage()
    if as_json:
        output.print_json(summary)
    else:
        _print_summary(summary)
    wrong = [*summary["mismatches"], *summary["unexpected"]]
    if wrong:
        code = "swarm_mismatch" if summary["mismatches"] else "swarm_unexpected"
        raise InputError(code, f"{len(wrong)} disagreements; the first: {wrong[0]}")


def _adjust_scenario(
    name: str, beacons: int | None, seconds: float | None, scale: int | None, own: bool
) -> "Scenario":
    """Return a scenario with what the options change; against a real clock it runs in real time."""
    from dataclasses import replace

    from beacon_ota.swarm import scenario

    found = scenario.load_scenario(name)
    changes: dict[str, Any] = {"scale": scale or (found.scale if own else 1)}
    if beacons is not None:
        changes |= {"beacons": beacons, "buildings": min(found.buildings, beacons)}
    if seconds is not None:
        changes["for_s"] = seconds
    return replace(found, **changes)


def _check_prefix(prefix: str) -> str:
    from beacon_ota.swarm.beacon import valid_prefix

    if not valid_prefix(prefix):
        raise UsageError(
            "swarm_prefix", "letters, digits, dot, dash", found=prefix, expected="swarm-a"
        )
    return prefix


class LiveView:
    """What there is to see while it runs."""

    def __init__(self, scenario: "Scenario", quiet: bool):
        from rich.live import Live

        self._live = None if quiet else Live(console=output.error_console, refresh_per_second=4)
        self._scenario = scenario
        self._what = ""

    def __enter__(self) -> "LiveView":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def print_step(self, text: str) -> None:
        self._what = text
        if self._live is not None:
            self._live.console.print(output.fill_markup("[dim]──[/] {}", text), highlight=False)

    def show_enrolled(self, done: int) -> None:
        if self._live is not None and done % 50 == 0:
            self._live.update(f"registered {done} of {self._scenario.beacons}")

    def show_snapshot(self, snapshot: dict[str, Any]) -> None:
        if self._live is not None:
            self._live.update(output.build_table(_snapshot_rows(snapshot), ("what", "now")))


def _snapshot_rows(found: dict[str, Any]) -> list[dict[str, object]]:
    polls, own = found["polls"], found["own"]
    rows: list[tuple[str, object]] = [
        ("beacons on", f"{found['alive']} of {found['beacons']}"),
        ("time", f"{found['elapsed_s']:.0f} s"),
        ("polls", f"{polls['count']}, p50 {polls['p50_ms']} ms, p99 {polls['p99_ms']} ms"),
        (
            "downloads",
            f"{found['downloading']} under way, {found['downloaded_mb']} MB;"
            f" {found['saved_mb']} MB were there already",
        ),
        ("attempts", ", ".join(f"{count} {word}" for word, count in own.items() if count) or "–"),
    ]
    if found["burst"]["count"]:
        burst = found["burst"]
        rows.insert(
            3,
            (
                "back from the cut",
                f"{burst['count']} polls, p99 {burst['p99_ms']} ms, longest {burst['max_ms']} ms",
            ),
        )
    for one in found["rollouts"]:
        counts = ", ".join(f"{count} {word}" for word, count in sorted(one["results"].items()))
        reason = f" ({one['reason']})" if one["reason"] else ""
        rows.append((f"rollout of {one['version']}", f"{one['status']}{reason}: {counts or '–'}"))
    return [{"what": name, "now": value} for name, value in rows]


def _print_summary(summary: dict[str, Any]) -> None:
    from beacon_ota.swarm.check import MISMATCHES_SHOWN

    pairs: dict[str, Any] = {row["what"]: row["now"] for row in _snapshot_rows(summary)}  # type: ignore
    pairs["polls per second"] = summary["polls_per_s"]
    pairs["exchanges broken"] = _format_counts(summary["broken"])
    pairs["refused"] = _format_counts(summary["refused"])
    pairs["swarm"] = f"{summary['swarm_cpu']:.0%} of a core, {summary['swarm_rss_mb']} MB"
    if usage := summary.get("orchestrator"):
        pairs["orchestrator"] = f"{usage['cpu_s']:.1f} s CPU in all, {usage['rss_mb']} MB"
    pairs["books"] = (
        f"{len(summary['mismatches'])} mismatches" if summary["mismatches"] else "agree"
    )
    print_fields(pairs, f"{summary['scenario']} as {summary['prefix']}")
    for line in [*summary["mismatches"], *summary["unexpected"]][:MISMATCHES_SHOWN]:
        output.console.print(output.alert_cell(f"  {line}"))


def _format_counts(found: dict[str, int]) -> str:
    return ", ".join(f"{count} {word}" for word, count in found.items()) or "–"
