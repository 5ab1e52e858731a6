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
    choice,
    count,
    flag,
    format_duration,
    is_duration,
    list_of,
    parse_duration,
    positive,
    share,
    shown,
    text,
)
from .rules import Rollout
from .types import (
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


def parse(
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
    preset = table.take("preset", choice(PRESETS, "preset_unknown"), "canary")
    base = Plan(
        _named(table, "rollout_id", text, rollout_id),
        _named(table, "release", _release, release),
        required=preset == "emergency",
        ladder=(Stage(1.0),) if preset == "all-at-once" else LADDER,
    )
    gate = table.take("gate", lambda v, at: _gate(v, at, base.gate), base.gate)
    plan = replace(
        base,
        waves=_waves(table, preset, gate, sites),
        ladder=table.take("ladder", _ladder, base.ladder),
        gate=gate,
        retry=table.take("retry", _retry, base.retry),
        required=table.take("required", flag, base.required),
        window=table.take("window", _hours, None),
        concurrency=table.take("concurrency", count, None),
        offer_s=table.take("offer", positive, base.offer_s),
    )
    table.done()
    Rollout(plan)
    return plan


def _named(table: Table, field: str, read: Reader[T], given: T | None) -> T:
    """Return what the caller gave or the table names; it must be there, and the same if both."""
    if given is None:
        return table.need(field, read)
    named = table.take(field, read, given)
    if named != given:
        raise PlanError("field_mismatch", f"{field}: not the one asked for", expected=field)
    return given


def dump(plan: Plan) -> dict[str, object]:
    """Write a plan in full, in JSON's types; :func:`parse` gives it back."""
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
    hours = text(value, where)
    parse_window(hours)
    return hours


def _release(value: object, where: str) -> Release:
    table = Table(value, where)
    release = Release(
        *(table.need(name, text) for name in ("firmware_id", "version", "device_type", "checksum"))
    )
    table.done()
    return release


def _gate(value: object, where: str, base: Gate) -> Gate:
    table = Table(value, where)
    gate = Gate(
        min_sample=table.take("min_sample", count, base.min_sample),
        healthy_share=table.take("healthy_share", share, base.healthy_share),
        failure_share=table.take("failure_share", share, base.failure_share),
        failure_sample=table.take("failure_sample", count, base.failure_sample),
        in_a_row=table.take("in_a_row", count, base.in_a_row),
        silence_s=table.take("silence", positive, base.silence_s),
        presence_s=table.take("presence", positive, base.presence_s),
        patience_s=table.take("patience", positive, base.patience_s),
        retry_first=table.take(
            "retry_first",
            list_of(choice(FAILURE_STAGES, "field_type"), len(FAILURE_STAGES)),
            base.retry_first,
        ),
    )
    table.done()
    return gate


def _dump_gate(gate: Gate) -> dict[str, object]:
    return {
        "min_sample": gate.min_sample,
        "healthy_share": gate.healthy_share,
        "failure_share": gate.failure_share,
        "failure_sample": gate.failure_sample,
        "in_a_row": gate.in_a_row,
        "silence": format_duration(gate.silence_s),
        "presence": format_duration(gate.presence_s),
        "patience": format_duration(gate.patience_s),
        "retry_first": list(gate.retry_first),
    }


def _retry(value: object, where: str) -> Retry:
    table = Table(value, where)
    base = Retry()
    retry = Retry(
        table.take("limit", count, base.limit),
        table.take("pauses", list_of(parse_duration, PAUSES_MAX), base.pauses_s),
    )
    table.done()
    if not retry.pauses_s:
        raise PlanError("field_missing", f"{where}.pauses: at least one", expected="2m")
    return retry


def _ladder(value: object, where: str) -> tuple[Stage, ...]:
    stages: list[Stage] = []
    reached = 0.0
    for table in list_of(Table, STAGES_MAX)(value, where):
        reached = _rung(table, reached)
        stages.append(Stage(reached, table.take("soak", parse_duration, 0.0)))
        table.done()
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
        opened = table.need("share", share)
    else:
        opened = round(reached + (1 - reached) * table.need("of_remaining", share), 12)
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
        waves = table.take("waves", list_of(lambda v, at: _wave(v, at, gate), WAVES_MAX), everybody)
    _check_waves(waves, sites)
    return waves


def _geographic(table: Table) -> tuple[Wave, ...]:
    """One wave for each building or group of buildings, a week apart, and the rest at the end."""

    def group(value: object, where: str) -> tuple[str, ...]:
        if isinstance(value, str):
            return (_site(value, where),)
        return list_of(_site, SITES_MAX)(value, where)

    groups = table.need("buildings", list_of(group, WAVES_MAX - 1))
    every = table.take("every", positive, WEEK)
    named = [
        Wave(" ".join(paths)[:TEXT_MAX], Selector(sites=paths), Opening(Base.START, every * index))
        for index, paths in enumerate(groups)
    ]
    rest = Wave("rest", Selector(rest=True), Opening(Base.START, every * len(groups)))
    return (*named, rest)


def _wave(value: object, where: str, gate: Gate) -> Wave:
    table = Table(value, where)
    wave = Wave(
        table.need("name", text),
        Selector(
            table.take("sites", list_of(_site, SITES_MAX), ()),
            table.take("tags", list_of(text, TAGS_MAX), ()),
            table.take("without", list_of(text, TAGS_MAX), ()),
            table.take("rest", flag, False),
        ),
        table.take("opens", _opening, Opening()),
        table.take("ladder", _ladder, None),
        table.take("gate", lambda v, at: _gate(v, at, gate), None),
    )
    table.done()
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
                found=shown(value),
                expected="2026-03-02T00:00:00Z or 7d",
            ) from None
    if not isinstance(value, Mapping):
        return Opening(Base.START, parse_duration(value, where))
    table = Table(value, where)
    bases = [base.value for base in Base if base is not Base.TIME]
    opening = Opening(
        Base(table.take("after", choice(bases, "field_type"), Base.START.value)),
        table.take("wait", parse_duration, 0.0),
    )
    table.done()
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
            raise PlanError("site_unknown", f"wave {wave.name!r}: no such site", found=path)


def _overlap(one: Selector, other: Selector) -> bool:
    """True when one beacon could be selected by both."""
    if one.rest or other.rest:
        return one.rest and other.rest
    if set(one.tags) & set(other.without) or set(other.tags) & set(one.without):
        return False
    if not one.sites or not other.sites:
        return True
    return any(a in ancestors(b) or b in ancestors(a) for a in one.sites for b in other.sites)
