"""Plans as people write them: a table of TOML or JSON, from a preset or in full.

    preset = "geographic"                 # canary | geographic | emergency | all-at-once
    buildings = ["hq/a", "hq/b"]          # geographic: one wave each, the rest last
    every = "7d"

or, in full, every field with its default where there is one:

    required = false
    window = "01:00-04:00"                # instead of the buildings' own
    concurrency = 20                      # per building; left out: no cap
    offer = "10m"
    retry = { limit = 3, pauses = ["2m", "4m", "8m", "16m", "32m"] }
    gate = { min_sample = 3, healthy_share = 0.9, failure_share = 0.05, failure_sample = 5,
             in_a_row = 3, silence = "30m", presence = "6h", patience = "7d",
             retry_first = ["download"] }
    ladder = [ { share = 0.1, soak = "24h" }, { of_remaining = 0.5, soak = "12h" }, { share = 1 } ]
    [[waves]]
    name = "pilot"
    sites = ["hq/a"]
    tags = ["lobby"]
    without = ["clinic"]
    opens = { after = "start", wait = "7d" }    # or a time: 2026-03-02T00:00:00Z
    [[waves]]
    name = "others"
    rest = true
    opens = { after = "previous_end" }
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from itertools import combinations

from .fields import (
    TEXT_MAX,
    PlanError,
    Reader,
    T,
    Table,
    format_duration,
    is_duration,
    parse_duration,
    printable_value,
    read_choice,
    read_count,
    read_flag,
    read_list,
    read_positive_duration,
    read_share,
    read_text,
)
from .plan_types import (
    LADDER,
    WEEK,
    Base,
    Gate,
    Opening,
    Plan,
    Release,
    Retry,
    Selector,
    Stage,
    Wave,
)
from .rules import Rollout
from .windows import ancestors, check_path, parse_window

PRESETS = ("canary", "geographic", "emergency", "all-at-once")
FAILURE_STAGES = ("download", "flash", "verify", "boot")

# Limits: a plan is small, whoever sends it.
WAVES_MAX = 64
STAGES_MAX = 20
SITES_MAX = 256
TAGS_MAX = 32
PAUSES_MAX = 16
LATEST = 7_258_118_400.0  # the year 2200


def parse_plan(
    data: object,
    *,
    rollout_id: str | None = None,
    release: Release | None = None,
    sites: Collection[str] | None = None,
) -> Plan:
    """Read a plan; what is left out takes its default.

    Args:
        data: the table.
        rollout_id, release: where the table does not name them itself.
        sites: all paths of the site tree; when given, a wave must name one of them.

    Raises:
        PlanError: ``field_unknown``, ``field_missing``, ``field_mismatch``, ``field_type``,
            ``number_range``, ``time_syntax``, ``time_negative``, ``time_range``,
            ``preset_unknown``,
            ``ladder_empty``, ``ladder_share``, ``ladder_not_rising``, ``ladder_not_whole``,
            ``waves_none``, ``wave_name``, ``wave_empty``, ``wave_overlap``, ``site_unknown``,
            ``too_many``.
        InputError: ``site_path``, ``window_syntax``, ``window_empty``, ``version_syntax``.
    """
    table = Table(data, "")
    preset = table.optional("preset", read_choice(PRESETS, "preset_unknown"), "canary")
    base = Plan(
        _named(table, "rollout_id", read_text, rollout_id),
        _named(table, "release", _release, release),
        required=preset == "emergency",
        ladder=(Stage(1.0),) if preset == "all-at-once" else LADDER,
    )
    gate = table.optional("gate", lambda v, at: _gate(v, at, base.gate), base.gate)
    plan = replace(
        base,
        waves=_waves(table, preset, gate, sites),
        ladder=table.optional("ladder", _ladder, base.ladder),
        gate=gate,
        retry=table.optional("retry", _retry, base.retry),
        required=table.optional("required", read_flag, base.required),
        window=table.optional("window", _hours, None),
        concurrency=table.optional("concurrency", read_count, None),
        offer_s=table.optional("offer", read_positive_duration, base.offer_s),
    )
    table.reject_unknown()
    Rollout(plan)
    return plan


def _named(table: Table, field: str, read: Reader[T], given: T | None) -> T:
    """Return what the caller gave or the table names; it must be there, and the same if both."""
    if given is None:
        return table.required(field, read)
    named = table.optional(field, read, given)
    if named != given:
        raise PlanError("field_mismatch", f"{field}: not the one asked for", expected=field)
    return given


def dump_plan(plan: Plan) -> dict[str, object]:
    """Write a plan in full, in JSON's types; :func:`parse_plan` gives it back."""
    release = plan.release
    data: dict[str, object] = {
        "rollout_id": plan.rollout_id,
        "release": {
            "firmware_id": release.firmware_id,
            "version": release.version,
            "device_type": release.device_type,
            "checksum": release.checksum,
        },
        "required": plan.required,
        "offer": format_duration(plan.offer_s),
        "retry": {
            "limit": plan.retry.limit,
            "pauses": [format_duration(pause) for pause in plan.retry.pauses_s],
        },
        "gate": _dump_gate(plan.gate),
        "ladder": _dump_ladder(plan.ladder),
        "waves": [_dump_wave(wave) for wave in plan.waves],
    }
    if plan.window is not None:
        data["window"] = plan.window
    if plan.concurrency is not None:
        data["concurrency"] = plan.concurrency
    return data


# ---- parts of a plan: readers and writers ----


def _hours(value: object, where: str) -> str:
    hours = read_text(value, where)
    parse_window(hours)
    return hours


def _release(value: object, where: str) -> Release:
    table = Table(value, where)
    release = Release(
        *(
            table.required(name, read_text)
            for name in ("firmware_id", "version", "device_type", "checksum")
        )
    )
    table.reject_unknown()
    return release


def _gate(value: object, where: str, base: Gate) -> Gate:
    table = Table(value, where)
    gate = Gate(
        min_sample=table.optional("min_sample", read_count, base.min_sample),
        healthy_share=table.optional("healthy_share", read_share, base.healthy_share),
        failure_share=table.optional("failure_share", read_share, base.failure_share),
        failure_sample=table.optional("failure_sample", read_count, base.failure_sample),
        max_consecutive_failures=table.optional(
            "in_a_row", read_count, base.max_consecutive_failures
        ),
        report_timeout_s=table.optional("silence", read_positive_duration, base.report_timeout_s),
        liveness_window_s=table.optional(
            "presence", read_positive_duration, base.liveness_window_s
        ),
        stage_timeout_s=table.optional("patience", read_positive_duration, base.stage_timeout_s),
        retry_first=table.optional(
            "retry_first",
            read_list(read_choice(FAILURE_STAGES, "field_type"), len(FAILURE_STAGES)),
            base.retry_first,
        ),
    )
    table.reject_unknown()
    return gate


def _dump_gate(gate: Gate) -> dict[str, object]:
    return {
        "min_sample": gate.min_sample,
        "healthy_share": gate.healthy_share,
        "failure_share": gate.failure_share,
        "failure_sample": gate.failure_sample,
        "in_a_row": gate.max_consecutive_failures,
        "silence": format_duration(gate.report_timeout_s),
        "presence": format_duration(gate.liveness_window_s),
        "patience": format_duration(gate.stage_timeout_s),
        "retry_first": list(gate.retry_first),
    }


def _retry(value: object, where: str) -> Retry:
    table = Table(value, where)
    base = Retry()
    retry = Retry(
        table.optional("limit", read_count, base.limit),
        table.optional("pauses", read_list(parse_duration, PAUSES_MAX), base.pauses_s),
    )
    table.reject_unknown()
    if not retry.pauses_s:
        raise PlanError("field_missing", f"{where}.pauses: at least one", expected="2m")
    return retry


def _ladder(value: object, where: str) -> tuple[Stage, ...]:
    stages: list[Stage] = []
    reached = 0.0
    for table in read_list(Table, STAGES_MAX)(value, where):
        reached = _rung(table, reached)
        stages.append(Stage(reached, table.optional("soak", parse_duration, 0.0)))
        table.reject_unknown()
    if not stages:
        raise PlanError("ladder_empty", f"{where}: at least one stage", expected="share = 1")
    if reached != 1.0:
        raise PlanError(
            "ladder_not_whole",
            f"{where}: the last stage opens everything",
            found=reached,
            expected=1,
        )
    return tuple(stages)


def _rung(table: Table, reached: float) -> float:
    """Return the cumulative share that a stage opens, given what the one before did."""
    if table.has("share") == table.has("of_remaining"):
        raise PlanError(
            "ladder_share",
            f"{table.where}: either a share or a share of_remaining",
            expected="share = 0.1",
        )
    if table.has("share"):
        opened = table.required("share", read_share)
    else:
        opened = round(reached + (1 - reached) * table.required("of_remaining", read_share), 12)
    if opened <= reached:
        raise PlanError(
            "ladder_not_rising",
            f"{table.where}: each stage opens more than the one before",
            found=opened,
            expected=f"more than {reached:g}",
        )
    return opened


def _dump_ladder(ladder: tuple[Stage, ...]) -> list[dict[str, object]]:
    return [{"share": stage.share, "soak": format_duration(stage.soak_s)} for stage in ladder]


# ---- waves ----


def _waves(
    table: Table, preset: str, gate: Gate, sites: Collection[str] | None
) -> tuple[Wave, ...]:
    if preset == "geographic" and not table.has("waves"):
        waves = _geographic(table)
    else:
        everybody = (Wave("all", Selector(rest=True)),)
        waves = table.optional(
            "waves", read_list(lambda v, at: _wave(v, at, gate), WAVES_MAX), everybody
        )
    _check_waves(waves, sites)
    return waves


def _geographic(table: Table) -> tuple[Wave, ...]:
    """One wave for each building or group of buildings, a week apart, and the rest at the end."""

    def group(value: object, where: str) -> tuple[str, ...]:
        if isinstance(value, str):
            return (_site(value, where),)
        return read_list(_site, SITES_MAX)(value, where)

    groups = table.required("buildings", read_list(group, WAVES_MAX - 1))
    every = table.optional("every", read_positive_duration, WEEK)
    named = [
        Wave(" ".join(paths)[:TEXT_MAX], Selector(sites=paths), Opening(Base.START, every * index))
        for index, paths in enumerate(groups)
    ]
    rest = Wave("rest", Selector(rest=True), Opening(Base.START, every * len(groups)))
    return (*named, rest)


def _wave(value: object, where: str, gate: Gate) -> Wave:
    table = Table(value, where)
    wave = Wave(
        table.required("name", read_text),
        Selector(
            table.optional("sites", read_list(_site, SITES_MAX), ()),
            table.optional("tags", read_list(read_text, TAGS_MAX), ()),
            table.optional("without", read_list(read_text, TAGS_MAX), ()),
            table.optional("rest", read_flag, False),
        ),
        table.optional("opens", _opening, Opening()),
        table.optional("ladder", _ladder, None),
        table.optional("gate", lambda v, at: _gate(v, at, gate), None),
    )
    table.reject_unknown()
    return wave


def _site(value: object, where: str) -> str:
    return check_path(value)


def _opening(value: object, where: str) -> Opening:
    if isinstance(value, datetime):
        return Opening(Base.TIME, _utc(value, where))
    if isinstance(value, str) and not is_duration(value):
        try:
            return Opening(Base.TIME, _utc(datetime.fromisoformat(value), where))
        except ValueError:
            raise PlanError(
                "time_syntax",
                f"{where}: neither a time nor a duration",
                found=printable_value(value),
                expected="2026-03-02T00:00:00Z or 7d",
            ) from None
    if not isinstance(value, Mapping):
        return Opening(Base.START, parse_duration(value, where))
    table = Table(value, where)
    bases = [base.value for base in Base if base is not Base.TIME]
    opening = Opening(
        Base(table.optional("after", read_choice(bases, "field_type"), Base.START.value)),
        table.optional("wait", parse_duration, 0.0),
    )
    table.reject_unknown()
    return opening


def _utc(at: datetime, where: str) -> float:
    if at.tzinfo is None:
        raise PlanError(
            "time_syntax", f"{where}: the time has no zone", found=str(at), expected=f"{at}Z"
        )
    try:
        seconds = at.timestamp()
    except OverflowError:
        seconds = -1.0
    if seconds < 0:
        raise PlanError("time_negative", f"{where}: before 1970", found=str(at))
    if seconds > LATEST:
        raise PlanError("time_range", f"{where}: after the year 2200", found=str(at))
    return seconds


def _dump_wave(wave: Wave) -> dict[str, object]:
    data: dict[str, object] = {"name": wave.name}
    selector = wave.selector
    for field in ("sites", "tags", "without"):
        if values := getattr(selector, field):
            data[field] = list(values)
    if selector.rest:
        data["rest"] = True
    if wave.opens.base is Base.TIME:
        data["opens"] = datetime.fromtimestamp(wave.opens.seconds, UTC).isoformat()
    else:
        data["opens"] = {
            "after": wave.opens.base.value,
            "wait": format_duration(wave.opens.seconds),
        }
    if wave.ladder is not None:
        data["ladder"] = _dump_ladder(wave.ladder)
    if wave.gate is not None:
        data["gate"] = _dump_gate(wave.gate)
    return data


def _check_waves(waves: tuple[Wave, ...], sites: Collection[str] | None) -> None:
    if not waves:
        raise PlanError("waves_none", "waves: at least one wave", expected="rest = true")
    names = set()
    for wave in waves:
        if wave.name in names:
            raise PlanError("wave_name", "waves: two of one name", found=wave.name)
        names.add(wave.name)
        _check_selector(wave, sites)
    for one, other in combinations(waves, 2):
        if _overlap(one.selector, other.selector):
            raise PlanError(
                "wave_overlap",
                f"waves: a beacon could be in both {one.name!r} and {other.name!r}",
                found=[one.name, other.name],
                expected="other sites, a tag that the other is without, or rest = true",
            )


def _check_selector(wave: Wave, sites: Collection[str] | None) -> None:
    selector = wave.selector
    named = selector.sites or selector.tags or selector.without
    if selector.rest and named:
        raise PlanError("wave_empty", f"wave {wave.name!r}: rest stands alone", found=wave.name)
    if not selector.rest and not named:
        raise PlanError(
            "wave_empty",
            f"wave {wave.name!r}: selects nobody",
            found=wave.name,
            expected="sites, tags, without, or rest = true",
        )
    if set(selector.tags) & set(selector.without):
        raise PlanError(
            "wave_empty", f"wave {wave.name!r}: with and without the same tag", found=wave.name
        )
    for path in selector.sites:
        if sites is not None and path not in sites:
            raise PlanError(
                "site_unknown",
                f"wave {wave.name!r}: no such site; add it first",
                found=path,
                expected="a site of `beacon-ota site list`",
            )


def _overlap(one: Selector, other: Selector) -> bool:
    """True when one beacon could be selected by both."""
    if one.rest or other.rest:
        return one.rest and other.rest
    if set(one.tags) & set(other.without) or set(other.tags) & set(one.without):
        return False
    if not one.sites or not other.sites:
        return True
    return any(a in ancestors(b) or b in ancestors(a) for a in one.sites for b in other.sites)
