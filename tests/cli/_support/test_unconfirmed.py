"""Mirrors that have not confirmed a stop: how long a command waits, and what it says of them."""

from beacon_ota.cli._support import unconfirmed
from beacon_ota.console import output
from beacon_ota.errors import ReachError

MIRROR = {
    "mirror": "lan-north",
    "site": "north",
    "since": None,
    "seen_at": None,
    "silent_s": 0.0,
    "hands_out": True,
    "hands_out_until": None,
}


def test_a_halt_is_done_when_nobody_can_be_asked_who_has_confirmed_it():
    """The database goes away in between: the halt was stored, and the command says so."""
    done = {"unconfirmed": [{"silent_s": 0.0}]}

    def ask_again():
        raise ReachError("unreachable", "the orchestrator is away")

    unconfirmed.wait_for_mirrors(done, ask_again)
    assert done["unconfirmed"] == [{"silent_s": 0.0}]


def test_it_waits_for_mirrors_in_contact_alone():
    done = {"unconfirmed": [{"silent_s": 0.0}]}
    unconfirmed.wait_for_mirrors(done, lambda: {"unconfirmed": []})
    assert done["unconfirmed"] == []
    away = {"unconfirmed": [{"silent_s": unconfirmed.WAIT_S}]}
    unconfirmed.wait_for_mirrors(away, lambda: {"unconfirmed": []})
    assert away["unconfirmed"]


def test_each_mirror_is_named_with_its_lease(capsys):
    until = {**MIRROR, "hands_out_until": "2026-03-02T22:30:00Z"}
    rows = [MIRROR, until, {**until, "hands_out": False, "site": ""}]
    with output.console.capture() as captured:
        output.console.print(unconfirmed.describe_waiting(rows), soft_wrap=True)
    first, second, third = captured.get().splitlines()
    assert "mirror lan-north (site north)" in first and "for as long as" in first
    assert "it may hand out until" in second
    assert "(site everything)" in third and "it hands out nothing since" in third
