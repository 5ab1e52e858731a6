"""The command ``beacon-ota``: a table of lazily imported groups, one module each.

Exit codes: 0 done · 1 refused input or a failed check · 2 wrong usage · 3 unreachable ·
4 not permitted · 5 stopped, and not stored yet · 130 interrupted, 143 and 129 told to end.
"""

import importlib
import io
import sys
from dataclasses import dataclass
from typing import Annotated

import typer
import typer.core

from beacon_ota import __version__, lifeline
from beacon_ota.cli._support import ends, plain_help, suggestions
from beacon_ota.errors import BeaconOtaError, UsageError


@dataclass(frozen=True)
class Entry:
    """A command of the table: the module that holds it, and the line for the help."""

    module: str
    help: str


# The order is the order of the help.
TABLE = {
    "demo": Entry("demo", "Run the whole pipeline on virtual beacons."),
    "image": Entry("image", "Build and inspect release and flash images."),
    "core": Entry("core", "Fetch and show MicroPython cores."),
    "flash": Entry("flash", "Write a flash image to a chip and verify it."),
    "flash-batch": Entry("flash_batch", "Label, build and flash boards as they are plugged in."),
    "deploy": Entry("deploy", "Copy the app to a board that runs MicroPython (development)."),
    "keys": Entry("keys", "Make, list, export and rotate signing keys."),
    "serve": Entry("serve", "Run the orchestrator or a mirror."),
    "backup": Entry("backup", "Copy an orchestrator's data, while it runs."),
    "restore": Entry("restore", "Put a backup into an empty data folder."),
    "release": Entry("release", "Sign, upload, promote, deprecate, republish releases."),
    "rollout": Entry("rollout", "Plan, start, watch and stop rollouts."),
    "beacon": Entry("beacon", "List, show and manage beacons."),
    "site": Entry("site", "Manage buildings, floors, time zones and windows."),
    "events": Entry("events", "Follow what happens, live."),
    "webhook": Entry("webhook", "Tell other systems what happens."),
    "mirror": Entry("mirror", "Manage distribution points on sites."),
    "token": Entry("token", "Make and revoke administrator tokens."),
    "audit": Entry("audit", "Show and verify the audit log."),
    "provision": Entry("provision", "Bring beacons online over Bluetooth."),
    "monitor": Entry("monitor", "Watch beacons in Bluetooth range."),
    "virtual": Entry("virtual", "Run virtual beacons from flash images."),
    "swarm": Entry("swarm", "Simulate thousands of beacons against an orchestrator."),
    "campaign": Entry("campaign", "Power cuts, faults and fuzzing on virtual beacons."),
}


class Root(typer.core.TyperGroup):
    """A group that imports a command's module only when it is used."""

    _from_table = False

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return list(TABLE)

    def get_command(self, ctx, cmd_name: str):  # the context's class is typer's own affair
        entry = TABLE.get(cmd_name)
        if entry is None:
            return None
        if self._from_table:
            return typer.core.TyperGroup(name=cmd_name, help=entry.help)
        module = importlib.import_module(f"beacon_ota.cli.{entry.module}")
        command = plain_help.build_command(module.app)
        command.name = cmd_name
        return command

    def resolve_command(self, ctx, args: list[str]):
        """Find a command; a name that is none is answered with those that were meant."""
        return suggestions.resolve_command(self, ctx, args)

    def shell_complete(self, ctx, incomplete: str):
        """Complete names out of the table: a shell waits for this at every Tab."""
        self._from_table = True
        try:
            return super().shell_complete(ctx, incomplete)
        finally:
            self._from_table = False

    def format_help(self, ctx, formatter) -> None:
        """Print the table itself, so that help imports nothing."""
        from beacon_ota.console import output

        width = max(map(len, TABLE))
        print = output.console.print
        print("[bold]beacon-ota[/] COMMAND …  (each takes --help)\n", highlight=False)
        for name, entry in TABLE.items():
            output.print_markup("  [cyan]{}[/]  {}", name.ljust(width), entry.help)
        print("\n  --version, --install-completion, --show-completion", highlight=False)


app = typer.Typer(
    cls=Root,
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(shown: bool) -> None:
    if shown:
        typer.echo(f"beacon-ota {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Over-the-air updates for fleets of ESP32-C3 MicroPython beacons."""


def main(args: list[str] | None = None) -> None:
    """Run the command line; named errors become one line on stderr and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.encoding.lower().startswith("utf"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a sign
    lifeline.hold_on_to_starter()
    with ends.as_interrupts():
        _run(args)


def _run(args: list[str] | None) -> None:
    try:
        app(args=args, prog_name="beacon-ota")
    except BeaconOtaError as error:
        from beacon_ota.console import output

        output.print_error(error)
        sys.exit(error.exit_code)
    except UnicodeEncodeError as error:
        if not any("\ud800" <= sign <= "\udfff" for sign in error.object):
            raise
        from beacon_ota.console import output

        wrong = UsageError(
            "argument_encoding", "an argument is not UTF-8 text", found=error.object[:80]
        )
        output.print_error(wrong)
        sys.exit(wrong.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
