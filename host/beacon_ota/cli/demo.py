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
    from beacon_ota.demo.play import DemoResult

app = typer.Typer(add_completion=False, help="Show the whole pipeline on virtual beacons.")
HEAP_MAX = 24 * 1024


@app.command()
def demo(
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
    """Provision beacons over Bluetooth, roll out a good release, see a bad one halted."""
    from beacon_ota.demo.play import Demonstration

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
                say_url=_announce,
            )
        )
        result = play.run(keep=keep)
    wrong = _check(result)
    if json:
        output.print_json({**asdict(result), "wrong": wrong})
    else:
        _summary(result)
    if wrong:
        raise InputError("demo_failed", "; ".join(wrong))


def _announce(url: str, token: str) -> None:
    output.print_markup(
        "dashboard  [bold cyan]{}[/]   token  [bold]{}[/]",
        url,
        token,
        to=output.error_console,
        soft_wrap=True,
    )


def _check(result: "DemoResult") -> list[str]:
    """Return what did not come out as it should."""
    from beacon_ota.demo.play import GOOD, LADDER

    share = float(LADDER[0]["share"])  # type: ignore[arg-type]
    most = max(1, -(-result.count * share // 1))
    wrong = []
    if result.versions != {GOOD: result.count}:
        wrong.append(f"not all beacons run {GOOD}: {result.versions}")
    if not 1 <= result.touched <= most:
        wrong.append(f"{result.touched} beacons were offered the bad release, not 1 to {most:g}")
    if result.rolled_back != result.touched:
        wrong.append(f"{result.rolled_back} of {result.touched} rolled back")
    if any(trials != 3 for trials in result.trials.values()):
        wrong.append(f"trial boots: {result.trials}, not three each")
    return wrong


def _summary(result: "DemoResult") -> None:
    from rich.table import Table

    from beacon_ota.demo.play import BAD, GOOD, OLD

    table = Table(title="what happened", show_header=False)
    provisioned, updates = sorted(result.provisioned_s), sorted(result.updates)
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
            f"{len(updates)} updates, building by building; offer to confirmed, in beacon time, "
            f"{statistics.median(updates):.0f} s (median), {updates[-1]:.0f} s (slowest)",
        ),
        (
            "heap of an update",
            f"{result.heap_update / 1024:.1f} KB over idle ({result.heap_idle / 1024:.1f} KB); "
            f"limit {HEAP_MAX / 1024:g} KB",
        ),
        (
            f"{GOOD} → {BAD}",
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
