"""The demonstration, small, as somebody runs it."""

import json
import subprocess
import sys

from beacon_ota.demo.result import describe_failures


def test_the_whole_pipeline():
    """From boxes over Bluetooth, through a rollout, to a halt; nothing to set up before."""
    ran = subprocess.run(
        [sys.executable, "-m", "beacon_ota", "demo", "--count", "3", "--json"],
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert ran.returncode == 0, ran.stderr[-3000:] + ran.stdout[-3000:]
    said = json.loads(ran.stdout[ran.stdout.index("{\n") :])
    assert said["wrong"] == []
    assert said["versions"] == {"1.1.2": 3}
    assert (said["touched"], said["rolled_back"]) == (1, 1)
    assert list(said["trials"].values()) == [3]
    assert len(said["updates"]) == len(said["provisioned_s"]) == 3
    assert all(one["bytes_fetched"] >= said["release_bytes"] for one in said["updates"])
    assert set(said["hotfixes"]) == {"1.1.1", "1.1.2"}
    for found in said["hotfixes"].values():
        assert len(found) == 3 and all(0 < one["bytes_fetched"] < 24 * 1024 for one in found)
    assert all(0 < one["sectors_written"] <= 6 for one in said["hotfixes"]["1.1.2"])
    assert 0 < said["heap_update"] < 64 * 1024
    assert said["reason"] in ("healthy_share", "failure_share", "failures_in_a_row")


def test_failures_are_named():
    row = {"beacon_id": "beacon-1", "result": "failed", "stage": "download", "code": "stall"}
    row["detail"] = "no byte for 5 s"
    lost = {"beacon_id": "beacon-2", "result": "lost", "stage": None, "code": None, "detail": None}
    good = {"beacon_id": "beacon-3", "result": "success"}
    text = describe_failures([good, row, lost])
    assert text == "beacon-1 failed download/stall: no byte for 5 s; beacon-2 lost"
    assert describe_failures([row] * 5).endswith("; and 2 more")
    assert describe_failures([good]) == "no failed attempt"
