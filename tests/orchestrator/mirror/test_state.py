"""What a primary of another release answers: let go, left out by name, or refused."""

import json

import pytest

from beacon_ota import __version__
from beacon_ota.errors import ReachError, UsageError
from beacon_ota.orchestrator.mirror.state import PROTOCOL, read_answer
from tests.orchestrator.world import Local, upload

EVERYBODY = {"preset": "all-at-once", "window": "00:00-24:00"}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """An answer as a primary of this release gives it, with a row in every table."""
    tmp = tmp_path_factory.mktemp("given")
    with Local(tmp / "primary") as primary:
        admin = primary.admin()
        admin.create_site("a", tz="UTC")
        made = admin.create_mirror("lan-a", "a")
        (beacon,) = primary.beacons(1, site="a")
        firmware = upload(admin, "1.1.0", tmp, channel="stable")["firmware_id"]
        admin.create_rollout(firmware, EVERYBODY)
        assert beacon.download(beacon.offered()).status == 200
        mirror = type(admin)(primary.url, made["token"])
        reply = mirror.call("POST", "/api/mirror/sync", json={"epoch": "0" * 24})
    return json.dumps(reply)


@pytest.fixture
def reply(given):
    return json.loads(given)


def test_this_releases_answer_is_read_to_the_letter(reply):
    found = read_answer(reply)
    assert found.state == reply["state"] and not found.unread and found.fault() == ""
    assert (found.seq, found.etag, found.moves) == (0, reply["etag"], reply["moves"])
    assert found.version == __version__ and found.server_time


def test_an_answer_to_tell_all_again_gives_nothing(reply):
    assert not read_answer(reply).again
    reply |= {"again": True, "etag": "", "moves": "", "state": None}
    found = read_answer(reply)
    assert found.again and (found.state, found.moves) == (None, "")


def test_an_older_primary_says_less(reply):
    for name in ("protocol", "version", "moves", "server_time", "again"):
        del reply[name]
    for row in reply["state"]["beacons"]:
        del row["given_keys"]
    for row in reply["state"]["attempts"]:
        for name in ("blamed_at", "bytes_fetched", "sectors_kept", "sectors_written"):
            del row[name]
    for row in reply["state"]["firmwares"]:
        del row["blocks"]
    found = read_answer(reply)
    assert found.moves == "" and found.server_time is None and not found.unread
    assert not found.again


@pytest.mark.parametrize("text", ["%", "AAAA", "A" * 4096])
def test_a_block_index_that_cannot_be_right_is_done_without(reply, text):
    (row,) = reply["state"]["firmwares"]
    row["blocks"] = text
    found = read_answer(reply)
    assert found.state is not None and not found.unread
    assert found.state["firmwares"] == [{**row, "blocks": None}]


def test_fields_and_tables_that_are_unknown_are_let_go(reply):
    known = json.loads(json.dumps(reply["state"]))
    reply["colour"] = "blue"
    reply["state"]["policies"] = [{"id": "x"}]
    for rows in reply["state"].values():
        for row in rows:
            row["colour"] = {"of": ["any", 1.5, None]}
    found = read_answer(reply)
    assert found.state == known and not found.unread


@pytest.mark.parametrize(
    ("table", "change", "word"),
    [
        ("rollouts", {"status": "frozen"}, "frozen"),
        ("rollouts", {"state": "{"}, ""),
        ("rollouts", {"state": "[]"}, ""),
        ("rollouts", {"plan": '{"release": 7}'}, ""),
        ("rollouts", {"revision": "12"}, "revision"),
        ("firmwares", {"state": "frozen"}, "frozen"),
        ("firmwares", {"size": None}, "size"),
        ("firmwares", {"manifest": "{"}, ""),
        ("sites", {"tz": "Mars/Olympus"}, "Olympus"),
        ("sites", {"window": "noon"}, "noon"),
        ("sites", {"kind": "moon"}, "kind"),
        ("beacons", {"tags": "7"}, "tags"),
        ("beacons", {"key": "zz"}, "key"),
        ("beacons", {"device_type": "x" * 65}, "device_type"),
        ("attempts", {"result": "melted"}, "melted"),
        ("attempts", {"n": True}, "n"),
    ],
)
def test_a_row_that_cannot_be_read_is_named_with_both_releases(reply, table, change, word):
    reply["version"] = "9.9.9"
    row = reply["state"][table][0]
    row.update(change)
    if "status" in change:
        row["state"] = json.dumps({**json.loads(row["state"]), **change})
    ident = row["path" if table == "sites" else "id"]
    found = read_answer(reply)
    assert ident in found.unread[table]
    assert found.state is not None and ident not in json.dumps(found.state[table])
    assert word in found.unread[table][ident]
    assert "9.9.9" in found.fault() and __version__ in found.fault()
    if table == "firmwares":
        assert found.state["rollouts"] == [] == found.state["attempts"]


@pytest.mark.parametrize("protocol", [0, 2, "1", None, [1]])
def test_another_protocol_is_named_with_both_releases(reply, protocol):
    reply |= {"version": "9.9.9", "protocol": protocol}
    with pytest.raises(UsageError) as caught:
        read_answer(reply)
    assert caught.value.code == "mirror_protocol"
    assert "9.9.9" in str(caught.value) and __version__ in str(caught.value)
    assert caught.value.expected == PROTOCOL


@pytest.mark.parametrize(
    "change",
    [
        {"seq": None},
        {"seq": "7"},
        {"etag": 7},
        {"state": []},
        {"state": {}},
        {"state": {"sites": [7], "beacons": [], "firmwares": [], "rollouts": [], "attempts": []}},
        {"state": {"sites": {}, "beacons": [], "firmwares": [], "rollouts": [], "attempts": []}},
    ],
)
def test_what_is_no_answer_is_refused_as_a_whole(reply, change):
    for given in (reply | change, None, [], "x"):
        with pytest.raises(ReachError) as caught:
            read_answer(given)
        assert caught.value.code == "not_an_orchestrator"
