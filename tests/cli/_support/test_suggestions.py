"""A command that does not exist is answered with the one that was meant."""

import re

import pytest

from beacon_ota.cli import TABLE, main
from beacon_ota.cli._support.suggestions import suggest_commands


@pytest.mark.parametrize(
    ("typed", "there", "found"),
    [
        ("rolout", TABLE, "rollout"),
        ("Beacons", TABLE, "beacon"),
        ("start", ("create", "plan", "list"), "create"),
        ("ls", ("add", "list"), "list"),
        ("rm", ("add", "remove"), "remove"),
        ("lsit", ("add", "list"), "list"),
    ],
)
def test_what_was_meant(typed, there, found):
    assert suggest_commands(typed, there)[0] == found


def test_nothing_is_made_up():
    assert suggest_commands("xyzzy", TABLE) == []
    assert suggest_commands("start", ("list",)) == []


@pytest.mark.parametrize(
    ("args", "meant"),
    [
        (("rolout", "list"), "beacon-ota rollout"),
        (("rollout", "start", "1.0.0"), "beacon-ota rollout create"),
        (("release", "publish"), "beacon-ota release promote"),
        (("beacon", "shwo", "b1"), "beacon-ota beacon show"),
        (("xyzzy",), None),
    ],
)
def test_the_command_line_says_it(capsys, args, meant):
    with pytest.raises(SystemExit) as caught:
        main(list(args))
    said = " ".join(re.sub(r"[│╭╰─╮╯]", " ", capsys.readouterr().err).split())
    assert caught.value.code == 2 and "No such command" in said
    assert (f"`{meant}`" in said) if meant else ("Did you mean" not in said)
