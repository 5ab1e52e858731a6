"""Colours that can be read, and words as people use them."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beacon_ota.orchestrator.dashboard import fleet, live, logs, messages, page_base

CSS = (page_base.FOLDER / "static" / "app.css").read_text()
COLOURS = {
    name: (light, dark)
    for name, light, dark in re.findall(
        r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\);", CSS
    )
}
TEXT = [
    *(
        (ink, ground)
        for ink in ("ink", "muted", "accent")
        for ground in ("ground", "panel", "soft")
    ),
    *((f"{one}-ink", f"{one}-ground") for one in ("bad", "warn", "good", "blue", "violet")),
    *((f"{one}-ink", "panel") for one in ("bad", "warn", "good", "blue")),
    ("on-accent", "accent"),
]
# Of shapes 3:1 is asked for, where they say something that no word beside them says.
SHAPES = [
    (look, "panel") for look in ("valid", "updating", "trial", "failed", "silent", "quarantined")
]


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours as WCAG 2 has it."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_everything_can_be_read(theme):
    for pairs, least in ((TEXT, 4.5), (SHAPES, 3.0)):
        for ink, ground in pairs:
            found = round(contrast(COLOURS[ink][theme], COLOURS[ground][theme]), 2)
            assert found >= least, (ink, ground, found)


def test_every_state_has_a_colour_and_a_shape():
    for look in fleet.BADGES:
        assert look == "valid" or f".by-state .s-{look} " in CSS, look
        assert look == "unseen" or f".f-{look} " in CSS, look


def test_nothing_is_fetched_from_anywhere():
    for name in page_base.STATIC_FILES:
        text = (
            (page_base.FOLDER / "static" / name)
            .read_text()
            .replace("http://www.w3.org/2000/svg", "")
        )
        assert "//" not in re.sub(r"^\s*//.*$|\s// .*$", "", text, flags=re.M), name
        assert "innerHTML" not in text and "eval(" not in text and "@import" not in text
    for file in Path(page_base.FOLDER, "templates").iterdir():
        assert "|safe" not in file.read_text(), file


@given(st.text(max_size=40))
def test_no_text_becomes_markup(text):
    bar = str(page_base.render_stacked_bar([(text, 1.0)]))
    assert bar.count("<") == 3 and bar.count('"') == 16
    address = page_base.build_link("/beacons", q=text)
    assert not set(address) & set(" <>\"'")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0, "0 s"),
        (0.25, "250 ms"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (3600 * 5, "5 h"),
        (86400 * 2 + 300, "2 d"),
        (86400 * 2 + 7200, "2 d 2 h"),
    ],
)
def test_spans(seconds, text):
    assert messages.format_duration(seconds) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 0, "–"),
        (0, 5, "0 %"),
        (5, 5, "100 %"),
        (1, 3, "33.3 %"),
        (1, 5000, "< 0.1 %"),
        (4999, 5000, "> 99.9 %"),
        (0.55, 1, "55 %"),
    ],
)
def test_shares_are_never_rounded_to_all_or_nothing(part, whole, text):
    assert messages.format_share(part, whole) == text


KINDS = st.sampled_from(
    [*messages.LEVELS, *messages.TRANSITIONS, "what.ever", "", ".", "attempt.", "x"]
)
DATA = st.dictionaries(
    st.sampled_from(
        ["by", "reason", "detail", "beacon", "version", "firmware", "code", "failed_in", "tries"]
    ),
    st.text(max_size=10) | st.integers() | st.none(),
)


@given(KINDS, st.text(max_size=20), DATA)
def test_every_event_is_a_sentence(kind, subject, data):
    event = {"id": 1, "kind": kind, "subject": subject, "at": 0.0, "data": data}
    said = messages.describe_event(event, {})
    assert said.text and said.level in ("plain", "good", "warn", "bad")
    assert said.href == "" or said.href.startswith("/")
    assert live.topics_of([event])


@pytest.mark.parametrize(
    ("kind", "data", "text"),
    [
        (
            "rollout.halted",
            {"reason": "by_hand", "detail": "smoke"},
            "Rollout of 2.0.0 is halted: smoke",
        ),
        (
            "rollout.stage_opened",
            {"wave": 0, "stage": 1},
            "Rollout of 2.0.0 wave 1, stage 2 is open",
        ),
        ("mirror.halted", {"mirror": "lan"}, "Rollout of 2.0.0 is halted at mirror lan"),
        ("mirror.created", {}, "Mirror r1 was created"),
        ("webhook.created", {"name": "chat"}, "Webhook chat was created"),
        ("beacon.quarantined", {"reason": "noisy"}, "r1 is in quarantine: noisy"),
        (
            "beacon.questioned",
            {"device_type": "esp32c3", "says": "esp32c3-8mb"},
            "r1 says that it is esp32c3-8mb, and is registered as esp32c3",
        ),
        (
            "beacon.retyped",
            {"device_type": "esp32c3-8mb", "was": "esp32c3", "reason": "the beacon says so"},
            "r1 is registered as esp32c3-8mb, and was as esp32c3: the beacon says so",
        ),
        ("beacon.refused", {"code": "poll_query"}, "r1 is refused at every poll, poll_query"),
        ("firmware.promoted", {}, "Release 2.0.0 is stable"),
    ],
)
def test_sentences(kind, data, text):
    event = {"id": 1, "kind": kind, "subject": "r1", "at": 0.0, "data": data}
    assert messages.describe_event(event, {"r1": "2.0.0"}).text == text


def test_many_of_one_kind_are_one_line():
    def event(number: int, kind: str, beacon: str, **data):
        return {
            "id": number,
            "kind": kind,
            "subject": beacon,
            "at": 0.0,
            "data": {"beacon": beacon, "version": "2.0.0", **data},
        }

    rows = [event(n, "attempt.success", f"b{n}") for n in range(3)]
    rows.append(event(3, "attempt.failed", "b3", failed_in="verify", code="image"))
    rows += [event(n, "attempt.success", f"b{n}") for n in (4, 5)]
    lines = [said.text for _, said in logs.collapse_events(logs.describe_events(rows, {}))]
    assert lines == [
        "b5 and 1 other run 2.0.0",
        "b3 failed at 2.0.0: verify/image",
        "b2 and 2 others run 2.0.0",
    ]


def test_floors_lie_above_each_other():
    row = fleet.BeaconRow("b", "t", "1", "", "", "", (), "valid", False, None, "", None, None, ())
    sites = [
        {"path": path, "name": name}
        for path, name in (("a", "House A"), ("a/1", ""), ("a/2", ""), ("a/10", "Roof"))
    ]
    rows = [row._replace(site=path, building="a") for path in ("a/2", "a/10", "a/1")]
    rows += [row._replace(site="", building="")]
    found = fleet.group_by_building(rows, sites)
    assert [one.name for one in found] == ["House A", "No site"]
    assert [one.name for one in found[0].floors.values()] == ["Roof", "2", "1"]
    assert fleet.natural_key("floor 2") < fleet.natural_key("floor 10")
