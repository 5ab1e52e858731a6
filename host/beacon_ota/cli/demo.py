"""``beacon-ota demo``: the whole pipeline on virtual beacons, with nothing to set up."""

import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from beacon_ota.console import output
from beacon_ota.errors import InputError

if TYPE_CHECKING:
    from beacon_ota.demo.result import DemoResult, UpdateMeasure

app = typer.Typer(add_completion=False, help="Show the whole pipeline on virtual beacons.")
HEAP_MAX = 24 * 1024
HOTFIX_MAX = 24 * 1024  # bytes that the hotfix of one line may fetch


@app.command("demo")
def run_demo(
    count: Annotated[int, typer.Option(min=3, max=200, help="Beacons.")] = 30,
    time_scale: Annotated[
        float, typer.Option(min=1, max=50, help="Clocks run so much faster.")
    ] = 10,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    data: Annotated[
        Path | None, typer.Option(help="Folder to work in; a temporary one otherwise.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Go on until interrupted.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Lines, no live picture.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Provision beacons over Bluetooth, roll out a release and hotfixes, see a bad one halted."""
    from beacon_ota.demo.demonstration import Demonstration

    with ExitStack() as stack:
        if data is None:
            data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="beacon-ota-")))
        data.mkdir(parents=True, exist_ok=True)
        play = stack.enter_context(
            Demonstration(
                data,
                count=count,
                scale=time_scale,
                plain=plain or json or not output.console.is_terminal,
                port=port,
                say_url=_print_url,
            )
        )
        result = play.run(keep=keep)
    wrong = _find_disagreements(result)
    if json:
        output.print_json({**asdict(result), "wrong": wrong})
    else:
        _print_summary(result)
    if wrong:
        raise InputError("demo_failed", "; ".join(wrong))


def _print_url(url: str, token: str) -> None:
    output.print_markup(
        "dashboard  [bold cyan]{}[/]   token  [bold]{}[/]",
        url,
        token,
        to=output.error_console,
        soft_wrap=True,
    )


def _find_disagreements(result: "DemoResult") -> list[str]:
    """Return what did not come out as it should."""
    from beacon_ota.demo.demonstration import LADDER, SECOND

    share = float(LADDER[0]["share"])  # type: ignore[arg-type]
    most = max(1, -(-result.count * share // 1))
    wrong = []
    if result.versions != {SECOND: result.count}:
        wrong.append(f"not all beacons run {SECOND}: {result.versions}")
    for version, found in result.hotfixes.items():
        most_fetched = max((one.bytes_fetched for one in found), default=0)
        if most_fetched > HOTFIX_MAX:
            wrong.append(f"{version} fetched {most_fetched:,} bytes, not {HOTFIX_MAX:,} at most")
    if not 1 <= result.touched <= most:
        wrong.append(f"{result.touched} beacons were offered the bad release, not 1 to {most:g}")
    if result.rolled_back != result.touched:
        wrong.append(f"{result.rolled_back} of {result.touched} rolled back")
    if any(trials != 3 for trials in result.trials.values()):
        wrong.append(f"trial boots: {result.trials}, not three each")
    return wrong


def _print_summary(result: "DemoResult") -> None:
    from rich.table import Table

    from beacon_ota.demo.demonstration import BAD, GOOD, HOTFIX, OLD, SECOND

    table = Table(title="what happened", show_header=False)
    provisioned = sorted(result.provisioned_s)
    rows = (
        ("core", result.core),
        (
            "release image",
            f"{result.release_bytes:,} bytes, the app {result.app_bytes:,} of them compiled",
        ),
        (
            "provisioned over Bluetooth",
            f"{len(provisioned)} of {result.count}; connect to online "
            f"{statistics.median(provisioned):.1f} s (median), {provisioned[-1]:.1f} s (slowest)",
        ),
        (
            f"{OLD} → {GOOD}",
            f"{len(result.updates)} updates of everything, building by building: "
            + _describe_updates(result.updates),
        ),
        (
            f"{GOOD} → {HOTFIX}",
            "a line more, the first update after another core: "
            + _describe_updates(result.hotfixes[HOTFIX]),
        ),
        (
            f"{HOTFIX} → {SECOND}",
            "another line, both slots with the same core: "
            + _describe_updates(result.hotfixes[SECOND]),
        ),
        (
            "heap of an update",
            f"{result.heap_update / 1024:.1f} KB over idle ({result.heap_idle / 1024:.1f} KB); "
            f"limit {HEAP_MAX / 1024:g} KB",
        ),
        (
            f"{SECOND} → {BAD}",
            f"halted by itself ({result.reason}); {result.touched} of {result.count} touched, "
            f"{result.rolled_back} rolled back; trial boots: "
            + ", ".join(f"{name} {n}" for name, n in sorted(result.trials.items())),
        ),
        ("beacons now", ", ".join(f"{n} on {v}" for v, n in result.versions.items())),
        ("took", f"{result.seconds:.0f} s"),
    )
    for name, value in rows:
        table.add_row(f"[bold]{name}[/]", value)
    output.console.print(table)


def _describe_updates(found: "list[UpdateMeasure]") -> str:
    """Return time, bytes and sectors of updates; seconds are the beacons'."""
    seconds = sorted(one.seconds for one in found)
    fetched = statistics.median(one.bytes_fetched for one in found)
    written = statistics.median(one.sectors_written for one in found)
    return (
        f"offer to confirmed {statistics.median(seconds):.0f} s (median), {seconds[-1]:.0f} s "
        f"(slowest) of beacon time; {fetched:,.0f} bytes and {written:.0f} sectors each"
    )
