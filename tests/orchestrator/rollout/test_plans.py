"""Plans as people write them, and every way to get one wrong."""

import json
import re
import textwrap
import tomllib

import pytest

from beacon_ota.errors import InputError
from beacon_ota.orchestrator.rollout import plans
from beacon_ota.orchestrator.rollout.fields import format_duration, parse_duration
from beacon_ota.orchestrator.rollout.plan_types import (
    DAY,
    HOUR,
    LADDER,
    WEEK,
    Base,
    Gate,
    Opening,
    Plan,
    Selector,
    Stage,
    Wave,
)
from beacon_ota.orchestrator.rollout.plans import PRESETS, dump_plan, parse_plan
from tests.orchestrator.rollout.build import NEW, NEWER, utc

SITES = {"hq", "hq/a", "hq/a/1", "hq/b", "depot"}


def read(data, **how) -> Plan:
    return parse_plan(data, rollout_id="r1", release=NEW, **{"sites": SITES, **how})


def code_of(data, **how) -> str:
    with pytest.raises(InputError) as error:
        read(data, **how)
    assert error.value.message
    return error.value.code


def test_nothing_said_is_the_canary():
    assert read({}) == read({"preset": "canary"}) == Plan("r1", NEW)
    assert read({}).ladder == LADDER


def test_the_ladder_of_the_specification_in_its_own_words():
    said = [
        {"share": 0.1, "soak": "24h"},
        {"of_remaining": 0.5, "soak": "12h"},
        {"of_remaining": 1},
    ]
    assert read({"ladder": said}).ladder == LADDER


def test_geographic():
    plan = read({"preset": "geographic", "buildings": ["hq/a", ["hq/b", "depot"]]})
    assert plan.waves == (
        Wave("hq/a", Selector(("hq/a",)), Opening(Base.START, 0)),
        Wave("hq/b depot", Selector(("hq/b", "depot")), Opening(Base.START, WEEK)),
        Wave("rest", Selector(rest=True), Opening(Base.START, 2 * WEEK)),
    )
    daily = read({"preset": "geographic", "buildings": ["hq/a"], "every": "1d"})
    assert daily.waves[-1].opens == Opening(Base.START, DAY)


def test_emergency_and_all_at_once():
    assert read({"preset": "emergency"}).required
    assert read({"preset": "emergency"}).ladder == LADDER
    assert read({"preset": "all-at-once"}).ladder == (Stage(1.0),)
    assert not read({"preset": "emergency", "required": False}).required


def test_the_form_in_the_module_s_own_words():
    text = textwrap.dedent((plans.__doc__ or "").split("where there is one:")[1])
    text = re.sub(r",\n {9,}", ", ", text)  # TOML keeps a short table on one line
    plan = read(tomllib.loads(text))
    assert plan.gate == Gate() and plan.ladder == LADDER and plan.concurrency == 20
    assert plan.waves == (
        Wave("pilot", Selector(("hq/a",), ("lobby",), ("clinic",)), Opening(Base.START, 7 * DAY)),
        Wave("others", Selector(rest=True), Opening(Base.PREVIOUS_END, 0)),
    )


def test_a_wave_s_gate_starts_from_the_plan_s():
    plan = read(
        {
            "gate": {"min_sample": 7},
            "waves": [
                {"name": "x", "rest": True, "gate": {"in_a_row": 2}, "ladder": [{"share": 1}]}
            ],
        }
    )
    assert plan.waves[0].gate == Gate(min_sample=7, max_consecutive_failures=2)
    assert plan.waves[0].ladder == (Stage(1.0),)


@pytest.mark.parametrize(
    ("said", "opening"),
    [
        ("7d", Opening(Base.START, WEEK)),
        (90, Opening(Base.START, 90)),
        ({}, Opening(Base.START, 0)),
        ({"wait": "1d12h"}, Opening(Base.START, 36 * HOUR)),
        ({"after": "previous_start", "wait": 5}, Opening(Base.PREVIOUS_START, 5)),
        ("2026-03-05T01:00:00+01:00", Opening(Base.TIME, utc(2026, 3, 5))),
        ("2026-03-05T00:00:00Z", Opening(Base.TIME, utc(2026, 3, 5))),
        (tomllib.loads("at = 2026-03-05T00:00:00Z")["at"], Opening(Base.TIME, utc(2026, 3, 5))),
    ],
)
def test_openings(said, opening):
    assert read({"waves": [{"name": "x", "rest": True, "opens": said}]}).waves[0].opens == opening


@pytest.mark.parametrize("preset", [p for p in PRESETS if p != "geographic"])
def test_presets_round_trip(preset):
    plan = read({"preset": preset})
    assert parse_plan(json.loads(json.dumps(dump_plan(plan)))) == plan


ONE = {"name": "x", "rest": True}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (None, "field_type"),
        ([], "field_type"),
        ("canary", "field_type"),
        ({"presset": "canary"}, "field_unknown"),
        ({1: 2}, "field_unknown"),
        ({"preset": "yolo"}, "preset_unknown"),
        ({"preset": ["canary"]}, "preset_unknown"),
        ({"buildings": ["hq/a"]}, "field_unknown"),
        ({"required": 1}, "field_type"),
        ({"required": "yes"}, "field_type"),
        ({"concurrency": 0}, "number_range"),
        ({"concurrency": 1.5}, "field_type"),
        ({"concurrency": True}, "field_type"),
        ({"concurrency": 10**30}, "number_range"),
        ({"offer": 0}, "time_range"),
        ({"offer": "soon"}, "time_syntax"),
        ({"offer": "-5m"}, "time_negative"),
        ({"offer": -1}, "time_negative"),
        ({"offer": "9999999d"}, "time_range"),
        ({"offer": float("inf")}, "time_range"),
        ({"offer": float("nan")}, "time_range"),
        ({"offer": None}, "time_syntax"),
        ({"offer": True}, "time_syntax"),
        ({"window": "03:00-03:00"}, "window_empty"),
        ({"window": "3-5"}, "window_syntax"),
        ({"window": 3}, "field_type"),
        ({"ladder": []}, "ladder_empty"),
        ({"ladder": {}}, "field_type"),
        ({"ladder": [{"soak": "1h"}]}, "ladder_share"),
        ({"ladder": [{"share": 1, "of_remaining": 1}]}, "ladder_share"),
        ({"ladder": [{"share": 0}, {"share": 1}]}, "ladder_not_rising"),
        ({"ladder": [{"share": 1.5}]}, "number_range"),
        ({"ladder": [{"share": float("nan")}]}, "number_range"),
        ({"ladder": [{"share": -0.5}]}, "number_range"),
        ({"ladder": [{"share": "half"}]}, "field_type"),
        ({"ladder": [{"share": 0.5}, {"share": 0.5}, {"share": 1}]}, "ladder_not_rising"),
        ({"ladder": [{"share": 0.5}, {"share": 0.4}]}, "ladder_not_rising"),
        ({"ladder": [{"share": 0.5}]}, "ladder_not_whole"),
        ({"ladder": [{"share": 0.5}, {"of_remaining": 0.5}]}, "ladder_not_whole"),
        ({"ladder": [{"share": 1, "soak": "-1h"}]}, "time_negative"),
        ({"ladder": [{"share": 1, "soack": "1h"}]}, "field_unknown"),
        ({"ladder": [{"share": (n + 1) / 100} for n in range(100)]}, "too_many"),
        ({"retry": {"limit": 0}}, "number_range"),
        ({"retry": {"pauses": []}}, "field_missing"),
        ({"retry": {"pauses": ["2m", "x"]}}, "time_syntax"),
        ({"gate": {"healthy_share": 1.1}}, "number_range"),
        ({"gate": {"min_sample": 0}}, "number_range"),
        ({"gate": {"silence": 0}}, "time_range"),
        ({"gate": {"retry_first": ["breakfast"]}}, "field_type"),
        ({"gate": {"retry_first": "download"}}, "field_type"),
        ({"gate": {"silense": "30m"}}, "field_unknown"),
        ({"waves": []}, "waves_none"),
        ({"waves": [{"rest": True}]}, "field_missing"),
        ({"waves": [{"name": "", "rest": True}]}, "field_type"),
        ({"waves": [{"name": "a\nb", "rest": True}]}, "field_type"),
        ({"waves": [{"name": "x" * 101, "rest": True}]}, "field_type"),
        ({"waves": [{"name": "x"}]}, "wave_empty"),
        ({"waves": [{"name": "x", "rest": False}]}, "wave_empty"),
        ({"waves": [{**ONE, "sites": ["hq"]}]}, "wave_empty"),
        ({"waves": [{"name": "x", "tags": ["t"], "without": ["t"]}]}, "wave_empty"),
        ({"waves": [{"name": "x", "sites": ["mars"]}]}, "site_unknown"),
        ({"waves": [{"name": "x", "sites": ["../x"]}]}, "site_path"),
        ({"waves": [{"name": "x", "sites": [["hq"]]}]}, "site_path"),
        ({"waves": [{"name": "x", "sites": "hq"}]}, "field_type"),
        ({"waves": [ONE, ONE]}, "wave_name"),
        ({"waves": [ONE, {**ONE, "name": "y"}]}, "wave_overlap"),
        ({"waves": [{**ONE, "opens": "tomorrow"}]}, "time_syntax"),
        ({"waves": [{**ONE, "opens": "2026-03-05"}]}, "time_syntax"),
        ({"waves": [{**ONE, "opens": "2026-03-05T00:00:00"}]}, "time_syntax"),
        ({"waves": [{**ONE, "opens": "1960-03-05T00:00:00Z"}]}, "time_negative"),
        ({"waves": [{**ONE, "opens": "9999-12-31T23:59:59-12:00"}]}, "time_range"),
        ({"waves": [{**ONE, "opens": "0001-01-01T00:00:00+12:00"}]}, "time_negative"),
        ({"waves": [{**ONE, "opens": {"after": "lunch"}}]}, "field_type"),
        ({"waves": [{**ONE, "opens": {"after": "time"}}]}, "field_type"),
        ({"waves": [{**ONE, "opens": {"wait": -1}}]}, "time_negative"),
        ({"waves": [{**ONE, "opens": tomllib.loads("a = 2026-03-05")["a"]}]}, "time_syntax"),
        ({"waves": [{"name": f"{n}", "tags": [f"{n}"]} for n in range(65)]}, "too_many"),
        ({"preset": "geographic"}, "field_missing"),
        ({"preset": "geographic", "buildings": ["hq/a", "hq/a/1"]}, "wave_overlap"),
        ({"preset": "geographic", "buildings": ["hq/a", "hq/a"]}, "wave_name"),
        ({"preset": "geographic", "buildings": ["mars"]}, "site_unknown"),
        ({"preset": "geographic", "buildings": ["hq/a"], "every": 0}, "time_range"),
        ({"preset": "geographic", "buildings": "hq/a"}, "field_type"),
        ({"preset": "geographic", "buildings": [[]]}, "wave_empty"),
        ({"rollout_id": "other"}, "field_mismatch"),
        ({"release": dump_plan(Plan("r1", NEWER))["release"]}, "field_mismatch"),
        ({"release": {}}, "field_missing"),
    ],
)
def test_named_errors(data, code):
    assert code_of(data) == code


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ({"sites": ["hq/a"]}, {"sites": ["hq/b"]}, False),
        ({"sites": ["hq"]}, {"sites": ["hq/b"]}, True),
        ({"sites": ["hq/a"]}, {"sites": ["hq/b", "hq/a"]}, True),
        ({"tags": ["t"]}, {"sites": ["hq"]}, True),
        ({"tags": ["t"]}, {"sites": ["hq"], "without": ["t"]}, False),
        ({"tags": ["t"]}, {"tags": ["u"]}, True),
        ({"tags": ["t"]}, {"tags": ["u"], "without": ["t"]}, False),
        ({"sites": ["hq"]}, {"rest": True}, False),
    ],
)
def test_overlap(one, other, overlap):
    data = {"waves": [{"name": "one", **one}, {"name": "other", **other}]}
    if overlap:
        assert code_of(data) == "wave_overlap"
    else:
        assert len(read(data).waves) == 2


def test_without_a_site_tree_any_path_will_do():
    plan = read({"waves": [{"name": "x", "sites": ["mars/dome"]}]}, sites=None)
    assert plan.waves[0].selector.sites == ("mars/dome",)


def test_the_release_must_come_from_somewhere():
    for rollout_id, release in (("r1", None), (None, NEW)):
        with pytest.raises(InputError) as error:
            parse_plan({}, rollout_id=rollout_id, release=release)
        assert error.value.code == "field_missing"


def test_a_release_whose_version_is_none():
    data = dump_plan(Plan("r1", NEW))
    data["release"] = {**data["release"], "version": "1.2"}  # type: ignore[dict-item]
    with pytest.raises(InputError) as error:
        parse_plan(data)
    assert error.value.code == "version_syntax"


def test_errors_say_where_and_quote_little():
    with pytest.raises(InputError) as error:
        read({"waves": [ONE, {"name": "y", "sites": ["hq"], "opens": {"wait": "x" * 10_000}}]})
    assert error.value.message.startswith("waves[1].opens.wait:")
    assert len(str(error.value.as_dict())) < 500


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("90s", 90), ("1h30m", 5400), ("1.5h", 5400), ("2w", 2 * WEEK), (0.5, 0.5), ("0s", 0), (7, 7)],
)
def test_durations(said, seconds):
    assert parse_duration(said) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (90, "90s"), (5400, "90m"), (WEEK, "7d"), (0.5, 0.5)]
)
def test_durations_written(seconds, text):
    assert format_duration(seconds) == text
