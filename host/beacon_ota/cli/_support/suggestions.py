"""What a command that does not exist was probably meant to be."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import typer.core

# What other programs call it.
_MEANT = {
    "start": ("create", "run"),
    "begin": ("create",),
    "new": ("create", "add"),
    "make": ("create", "new", "add"),
    "register": ("add",),
    "ls": ("list",),
    "status": ("show", "list"),
    "info": ("show", "inspect"),
    "get": ("show",),
    "rm": ("remove",),
    "delete": ("remove", "revoke"),
    "stop": ("halt", "pause"),
    "cancel": ("abort", "halt"),
    "continue": ("resume",),
    "publish": ("promote", "upload"),
    "rollback": ("republish",),
    "scan": ("monitor",),
    "server": ("serve",),
    "update": ("rollout",),
    "users": ("token",),
    "login": ("token",),
}


def suggest_commands(typed: str, there: Iterable[str]) -> list[str]:
    """Return the commands that look like one that was typed, or mean the same."""
    there = list(there)
    meant = [name for name in _MEANT.get(typed.lower(), ()) if name in there]
    close = get_close_matches(typed.lower(), there)
    return list(dict.fromkeys([*meant, *close]))


def resolve_command(group: Any, ctx: Any, args: list[str]) -> Any:
    """Find the command that is called, as a group does; name others for one that is not there."""
    name = args[0]
    if (
        not name.startswith("-")
        and group.get_command(ctx, name) is None
        and not ctx.resilient_parsing
    ):
        found = suggest_commands(name, group.list_commands(ctx))
        names = " or ".join(f"`{ctx.command_path} {one}`" for one in found[:3])
        ctx.fail(f"No such command {name!r}." + f" Did you mean {names}?" * bool(found))
    return typer.core.TyperGroup.resolve_command(group, ctx, args)
