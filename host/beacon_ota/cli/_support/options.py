"""Options that several commands share, and groups of options that expand into a signature.

A parameter whose type is an :class:`OptionGroup` becomes one option for each field of the group::

    @app.command("list")
    @expand_groups
    def list_sites(*, server: Server, json: JsonOption = False) -> None:
        rows = server.client.list_sites()
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_type_hints

import typer

if TYPE_CHECKING:
    from beacon_ota.client import Client

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
ReasonOption = Annotated[str, typer.Option(help="Why; kept in the audit log.")]
WatchOption = Annotated[bool, typer.Option("--watch", "-w", help="Again and again, live.")]
EveryOption = Annotated[float, typer.Option(min=0.2, help="Seconds, with --watch.")]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="Data folder, to work without a server.")
]


class OptionGroup:
    """The base of a group of options: a frozen dataclass whose fields are annotated options."""


@dataclass(frozen=True)
class Server(OptionGroup):
    """Which orchestrator a command talks to."""

    url: Annotated[
        str | None,
        typer.Option("--url", help="Orchestrator; else BEACON_OTA_URL or the configuration."),
    ] = None
    token: Annotated[
        str | None,
        typer.Option("--token", help="Admin token; else BEACON_OTA_TOKEN or the configuration."),
    ] = None

    @cached_property
    def client(self) -> "Client":
        """A client for the server that the options, the environment or the file name."""
        from beacon_ota.client import Client

        return Client(self.url, self.token)


def expand_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that takes the fields of its option groups in place of the groups.

    The options of a group stand in the help where the group's parameter stands.

    Raises:
        TypeError: two options of the command have one name.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if not (isinstance(kind, type) and issubclass(kind, OptionGroup)):
            parameters.append(parameter.replace(annotation=hints[name]))
            continue
        assert is_dataclass(kind)
        groups[name] = kind
        options = get_type_hints(kind, include_extras=True)
        parameters += (
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=options[field.name],
            )
            for field in fields(kind)
        )
    names = [parameter.name for parameter in parameters]
    if len(set(names)) < len(names):
        raise TypeError(f"{command.__name__}: two options have one name in {names}")

    @functools.wraps(command)
    def run(**given: object) -> None:
        made = {
            name: kind(**{field.name: given.pop(field.name) for field in fields(kind)})
            for name, kind in groups.items()
        }
        command(**given, **made)

    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    )
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
