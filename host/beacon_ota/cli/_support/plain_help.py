"""Help texts without markup: every word is shown, and options stand under their headings.

Markup would take ``[default: …]`` for a tag, and importing the library that draws boxes costs a
third of the time that ``--help`` takes.
"""

from functools import partial
from typing import Any

import typer
import typer.core
import typer.main

from beacon_ota.cli._support import suggestions


def build_command(app: typer.Typer) -> Any:
    """Return the command of an application, with plain help throughout."""
    app.rich_markup_mode = None
    made = typer.main.get_command(app)
    _use_plain_options(made)
    return made


def _use_plain_options(made: Any) -> None:
    for sub in getattr(made, "commands", {}).values():
        _use_plain_options(sub)
    if isinstance(made, typer.core.TyperGroup):
        made.resolve_command = partial(suggestions.resolve_command, made)
    else:
        made.format_options = partial(_write_options, made)


def _write_options(made: Any, ctx: Any, formatter: Any) -> None:
    """Write the parameters of a command, in the order of their headings' first mention."""
    headings: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for param in made.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is not None:
            kind = "Arguments" if param.param_type_name == "argument" else "Options"
            headings.setdefault(param.rich_help_panel or kind, []).append(record)
    for heading, records in headings.items():
        if records:
            with formatter.section(heading):
                formatter.write_dl(records)
