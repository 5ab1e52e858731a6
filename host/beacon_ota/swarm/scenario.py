"""Reads scenarios: the beacons, releases and events of a swarm, as TOML.

    about = "one line"
    beacons = 1000
    buildings = 4                  # the beacons stand in them in turn
    for = "10m"                    # of the beacons' time; ends sooner when everything is settled
    time_scale = 1                 # of the orchestrator that is started for the scenario
    poll = "60s"                   # likewise
    speed = 20000                  # bytes per second of a download; left out: as it comes
    adaptive = true                # beacons fetch only the sectors that they do not have
    boot = "3s"                    # from reset to WiFi
    trial = "10s"                  # until a new release trusts itself
    spread = "60s"                 # over which the beacons are switched on

    [air]                          # shares of what WiFi does to calls
    refused = 0.01                 # no connection
    cut = 0.05                     # a download breaks off, and is taken up again from there
    deaf = 0.01                    # the answer is lost: the call was heard and is made again

    [[releases]]
    version = "1.1.0"
    size = 65536
    modules = 0                    # files of the app, a sector each
    base = "1.0"                   # releases of one base have core and modules in common, …
    changed = 0                    # … but for so many modules; without a base, nothing
    at = "10s"
    channel = "stable"
    plan = { preset = "canary" }   # as of `beacon-ota rollout`
    fates = { failed = 0.02, rolled_back = 0.01, mute = 0, silent = 0, dead = 0, ignored = 0 }

    [[events]]
    at = "60s"
    what = "power_cut"             # all beacons of these buildings, and all back at once
    buildings = 1
    off = "10s"

    [expect]                       # of the last release's rollout, beside that the counts agree
    status = "completed"
    touched = 0.1                  # no larger share of the beacons has taken it
    serving = 1.0                  # no smaller share runs it; until then it does not end

All fields but ``beacons`` and ``for`` may be left out.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from beacon_ota import text_files
from beacon_ota.errors import InputError, UsageError
from beacon_ota.orchestrator.rollout import fields as read
from beacon_ota.orchestrator.rollout.fields import PlanError, Table
from beacon_ota.swarm.outcome_model import OutcomeShares
from beacon_ota.wire import versions

BEACONS_MAX = 100_000
BUILDINGS_MAX = 1000
LIST_MAX = 100
MODULES_MAX = 64  # of a release's app
SIZE_MIN, SIZE_MAX = 8192, (2 << 20) - 4096  # bytes of a release; a stock slot has 2 MiB
STATUSES = ("scheduled", "active", "paused", "halted", "completed", "aborted")
EVENTS = ("power_cut",)
# Scenarios run at any hour, regardless of the maintenance windows of real buildings.
WINDOW = "00:00-24:00"


@dataclass(frozen=True, slots=True)
class CallLosses:
    """Shares, 0 to 1, of the calls that WiFi breaks."""

    refused: float = 0.0
    cut: float = 0.0
    deaf: float = 0.0


@dataclass(frozen=True, slots=True)
class ScenarioRelease:
    """A release that is uploaded and rolled out."""

    version: str
    size: int = 65536
    at_s: float = 0.0
    channel: str = "stable"
    plan: Mapping[str, object] = field(default_factory=dict)
    fates: OutcomeShares = OutcomeShares()
    modules: int = 0
    base: str = ""
    changed: int = 0


@dataclass(frozen=True, slots=True)
class ScenarioEvent:
    """An event in whole buildings."""

    at_s: float
    what: str
    buildings: int
    off_s: float


@dataclass(frozen=True, slots=True)
class Expectations:
    """The expected end of the last rollout."""

    status: str | None = None
    touched: float | None = None
    serving: float | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario; times in seconds of the beacons' clock, speeds in bytes per second of it."""

    name: str
    beacons: int
    for_s: float
    about: str = ""
    buildings: int = 1
    scale: float = 1.0
    poll_s: float = 60.0
    speed: float | None = None
    adaptive: bool = True
    boot_s: float = 3.0
    trial_s: float = 10.0
    spread_s: float = 60.0
    air: CallLosses = CallLosses()
    releases: tuple[ScenarioRelease, ...] = ()
    events: tuple[ScenarioEvent, ...] = ()
    expect: Expectations = Expectations()


def packaged_names() -> list[str]:
    """Return the names of the scenarios that come with the program."""
    folder = resources.files("beacon_ota.swarm") / "scenarios"
    return sorted(one.name[:-5] for one in folder.iterdir() if one.name.endswith(".toml"))


def load_scenario(name: str) -> Scenario:
    """Read a scenario: a packaged one by its name, else a file.

    Raises:
        UsageError: ``scenario_unknown``. InputError: ``scenario_file``, and as :func:`parse`.
    """
    if name in packaged_names():
        text = (resources.files("beacon_ota.swarm") / "scenarios" / f"{name}.toml").read_text()
    else:
        try:
            text = text_files.read_text_file(Path(name))
        except UsageError:
            raise UsageError(
                "scenario_unknown",
                "neither a packaged scenario nor a file",
                found=name,
                expected=", ".join(packaged_names()),
            ) from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError("scenario_file", f"{name} cannot be read: {error}") from None
    return parse_scenario(data, Path(name).stem)


def parse_scenario(data: object, name: str) -> Scenario:
    """Check a scenario's table.

    Raises:
        PlanError: the codes of rollout plans, naming the field.
    """
    table = Table(data, "")
    beacons = table.required("beacons", _number_reader(1, BEACONS_MAX))
    found = Scenario(
        name=name,
        beacons=beacons,
        for_s=table.required("for", read.read_positive_duration),
        about=table.optional("about", read.read_text, ""),
        buildings=table.optional("buildings", _number_reader(1, min(BUILDINGS_MAX, beacons)), 1),
        scale=table.optional("time_scale", _number_reader(1, 1000), 1),
        poll_s=table.optional("poll", read.read_positive_duration, 60.0),
        speed=table.optional("speed", _number_reader(100, 1_000_000_000), None),
        adaptive=table.optional("adaptive", read.read_flag, True),
        boot_s=table.optional("boot", read.parse_duration, 3.0),
        trial_s=table.optional("trial", read.parse_duration, 10.0),
        spread_s=table.optional("spread", read.parse_duration, 60.0),
        air=table.optional("air", _read_losses, CallLosses()),
        releases=table.optional("releases", read.read_list(_read_release, LIST_MAX), ()),
        events=table.optional("events", read.read_list(_read_event, LIST_MAX), ()),
        expect=table.optional("expect", _read_expectations, Expectations()),
    )
    table.reject_unknown()
    return found


def _number_reader(low: int, high: int) -> read.Reader[int]:
    def number(value: object, where: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise read.type_error(where, value, "whole number")
        if not low <= value <= high:
            raise PlanError(
                "number_range", f"{where}: out of range", found=value, expected=f"{low} to {high}"
            )
        return value

    return number


def _read_losses(value: object, where: str) -> CallLosses:
    table = Table(value, where)
    found = CallLosses(
        *(table.optional(name, read.read_share, 0.0) for name in ("refused", "cut", "deaf"))
    )
    table.reject_unknown()
    return found


def _read_outcomes(value: object, where: str) -> OutcomeShares:
    table = Table(value, where)
    found = OutcomeShares(
        *(table.optional(name, read.read_share, 0.0) for name in OutcomeShares.__slots__)
    )
    table.reject_unknown()
    if found.total > 1:
        raise PlanError("number_range", f"{where}: more than 1 in all", found=found.total)
    return found


def _read_version(value: object, where: str) -> str:
    text = read.read_text(value, where)
    try:
        versions.parse(text)
    except ValueError:
        raise PlanError("version_syntax", f"{where}: not semver", found=text) from None
    return text


def _read_plan(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise read.type_error(where, value, "table")
    if "waves" in value:  # they could select beacons outside of the swarm
        raise PlanError("field_unknown", f"{where}.waves: the swarm is the only wave")
    return dict(value)


def _read_release(value: object, where: str) -> ScenarioRelease:
    table = Table(value, where)
    found = ScenarioRelease(
        version=table.required("version", _read_version),
        size=table.optional("size", _number_reader(SIZE_MIN, SIZE_MAX), 65536),
        at_s=table.optional("at", read.parse_duration, 0.0),
        channel=table.optional(
            "channel", read.read_choice(("stable", "beta"), "channel_unknown"), "stable"
        ),
        plan=table.optional("plan", _read_plan, {"preset": "all-at-once"}),
        fates=table.optional("fates", _read_outcomes, OutcomeShares()),
        modules=table.optional("modules", _number_reader(0, MODULES_MAX), 0),
        base=table.optional("base", read.read_text, ""),
        changed=table.optional("changed", _number_reader(0, MODULES_MAX), 0),
    )
    table.reject_unknown()
    if found.size < SIZE_MIN + found.modules * 4096:
        raise PlanError(
            "number_range",
            f"{where}.size: too small for so many modules",
            found=found.size,
            expected=f"{SIZE_MIN + found.modules * 4096} and more",
        )
    return found


def _read_event(value: object, where: str) -> ScenarioEvent:
    table = Table(value, where)
    found = ScenarioEvent(
        at_s=table.required("at", read.parse_duration),
        what=table.required("what", read.read_choice(EVENTS, "event_unknown")),
        buildings=table.optional("buildings", _number_reader(1, BUILDINGS_MAX), 1),
        off_s=table.optional("off", read.parse_duration, 10.0),
    )
    table.reject_unknown()
    return found


def _read_expectations(value: object, where: str) -> Expectations:
    table = Table(value, where)
    found = Expectations(
        status=table.optional("status", read.read_choice(STATUSES, "status_unknown"), None),
        touched=table.optional("touched", read.read_share, None),
        serving=table.optional("serving", read.read_share, None),
    )
    table.reject_unknown()
    return found
