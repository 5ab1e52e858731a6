"""Options of a rollout's plan, and the plan as the API takes it."""

import json
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from beacon_ota import text_files
from beacon_ota.cli._support.completion import complete_names, complete_words
from beacon_ota.cli._support.options import OptionGroup
from beacon_ota.errors import InputError, UsageError

if TYPE_CHECKING:
    from beacon_ota.client import Json


@dataclass(frozen=True)
class PlanOptions(OptionGroup):
    """How a release is rolled out, and when the rollout begins."""

    preset: Annotated[
        str,
        typer.Option(
            help="canary, geographic, emergency or all-at-once.",
            autocompletion=complete_words("canary", "geographic", "emergency", "all-at-once"),
        ),
    ] = "canary"
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="Plan in full, TOML or JSON.", dir_okay=False),
    ] = None
    building: Annotated[
        list[str] | None,
        typer.Option(
            "--building",
            help="geographic: in this order; repeatable.",
            autocompletion=complete_names("site"),
        ),
    ] = None
    window: Annotated[str | None, typer.Option(help="Instead of the buildings' own.")] = None
    concurrency: Annotated[int | None, typer.Option(min=1, help="At once per building.")] = None
    start: Annotated[str | None, typer.Option(help="2026-03-02T22:00Z [default: now]")] = None
    seed: Annotated[
        str | None, typer.Option(help="From rollout plan: the same beacons, stage by stage.")
    ] = None

    def read_plan(self) -> "Json":
        """Return the plan: of the file, else the preset, with the other options put in.

        Raises:
            InputError: ``plan_file``.
        """
        plan: Json = read_plan_file(self.file) if self.file else {"preset": self.preset}
        if self.building:
            plan["buildings"] = self.building
        if self.window is not None:
            plan["window"] = self.window
        if self.concurrency is not None:
            plan["concurrency"] = self.concurrency
        return plan

    def parse_start(self) -> float | None:
        """Return the UTC seconds at which the rollout begins, None for now.

        Raises:
            UsageError: ``time_syntax``.
        """
        if self.start is None:
            return None
        try:
            at = datetime.fromisoformat(self.start)
        except ValueError:
            raise UsageError(
                "time_syntax", "not a time", found=self.start, expected="2026-03-02T22:00Z"
            ) from None
        return (at if at.tzinfo else at.astimezone()).astimezone(UTC).timestamp()


def read_plan_file(file: Path) -> "Json":
    """Read a plan, TOML or JSON (InputError ``plan_file``)."""
    try:
        text = text_files.read_text_file(file)
        return json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError("plan_file", f"{file} cannot be read: {error}") from None
