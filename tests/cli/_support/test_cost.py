"""What a release costs, as the commands show it."""

from typing import Any, cast

import pytest

from beacon_ota.cli._support.cost import print_cost, read_cost
from beacon_ota.client import Client
from beacon_ota.console.output import console
from beacon_ota.errors import InputError

GROUP = {"version": "1.0.0", "other_version": None, "beacons": 2, "bytes": 12_345}
GROUP |= {"sectors_written": 3, "seconds": 1.5, "changed": [f"m{n}.mpy" for n in range(6)]}
FULL = {"bytes": 99_999, "sectors_written": 25, "seconds": 7.0}
COST = {"beacons": 2, "have": 1, "bytes": 24_690, "bytes_in_full": 199_998, "full": FULL}
COST |= {"groups": [GROUP], "block_index": True}


class Orchestrator:
    """Answers with a cost, or refuses."""

    def __init__(self, cost: dict[str, Any] | None):
        self.cost = cost

    def estimate_cost(self, _firmware_id: str) -> dict[str, Any]:
        if self.cost is None:
            raise InputError("not_found", "an older orchestrator")
        return self.cost


def shown(capsys: pytest.CaptureFixture[str], cost: dict[str, Any] | None) -> str:
    print_cost(cast(Client, Orchestrator(cost)), "f")
    return capsys.readouterr().out


def test_a_line_for_each_group_and_the_sum(capsys, monkeypatch):
    monkeypatch.setattr(console, "_width", 200)
    text = shown(capsys, COST)
    assert "12,345" in text and "m3.mpy and 2 more" in text
    assert "2 beacons fetch 24,690 bytes; in full it would be 199,998" in " ".join(text.split())
    assert "no block index" not in text
    assert "no block index" in shown(capsys, {**COST, "block_index": False})


def test_nobody_needs_it(capsys):
    assert "1 runs it already" in shown(capsys, {**COST, "beacons": 0})
    assert "2 run it already" in shown(capsys, {**COST, "beacons": 0, "have": 2})
    text = shown(capsys, {**COST, "beacons": 0, "have": 0})
    assert "no beacon of this board" in text and "already" not in text


def test_one_beacon_needs_it(capsys, monkeypatch):
    monkeypatch.setattr(console, "_width", 200)
    assert "1 beacon fetches 24,690 bytes" in shown(capsys, {**COST, "beacons": 1})


def test_an_orchestrator_that_knows_no_costs(capsys):
    assert shown(capsys, None) == ""
    assert read_cost(cast(Client, Orchestrator(None)), "f") is None
