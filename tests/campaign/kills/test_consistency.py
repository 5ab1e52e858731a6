"""What the campaign of kills takes for a lost or a doubled answer."""

import random
import sqlite3

from beacon_ota.campaign.kills import consistency
from beacon_ota.campaign.kills.server_process import ServerProcess
from beacon_ota.campaign.kills.simulated_beacon import SimulatedBeacon


def test_an_acknowledged_answer_that_is_not_in_the_database_is_lost(tmp_path):
    server = ServerProcess(tmp_path)
    beacon = SimulatedBeacon("b000", bytes(32), random.Random(1))
    assert consistency.find_lost_promises(server, [beacon], [], {}) == []
    beacon.acknowledged.ends["a1"] = "success"
    beacon.acknowledged.entries.add(7)
    wrong = consistency.find_lost_promises(server, [beacon], ["r1"], {"f1": "c" * 64})
    assert wrong == [
        "b000: a1 was success, is None",
        "b000: journal entries [7] are missing",
        "rollouts {'r1'} are missing",
        "release f1 is None",
    ]


def test_a_file_without_a_release_is_left_over(tmp_path):
    server = ServerProcess(tmp_path)
    for name in ("blobs", "incoming"):
        (server.data / name).mkdir()
    assert consistency.find_leftovers(server) == []
    (server.data / "blobs" / "ab").touch()
    (server.data / "incoming" / "half").touch()
    assert consistency.find_leftovers(server) == [
        "file ab without a release",
        "left over: half",
    ]


def test_rows_are_read_past_the_orchestrator(tmp_path):
    server = ServerProcess(tmp_path)
    with sqlite3.connect(server.data / "beacon-ota.db") as database:
        count = database.execute("select count(*) from beacons").fetchone()[0]
    database.close()
    assert server.query_rows("select count(*) from beacons") == [(count,)]
