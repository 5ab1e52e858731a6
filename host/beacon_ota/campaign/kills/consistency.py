"""Compares the orchestrator's database and files with the answers that it acknowledged."""

import hashlib
from collections.abc import Collection, Iterable, Mapping

from beacon_ota.campaign.kills.server_process import ServerProcess
from beacon_ota.campaign.kills.simulated_beacon import SimulatedBeacon
from beacon_ota.errors import BeaconOtaError


def find_lost_promises(
    server: ServerProcess,
    beacons: Iterable[SimulatedBeacon],
    rollouts: Collection[str],
    releases: Mapping[str, str],
) -> list[str]:
    """Return a line for each acknowledged answer that is missing, and for each doubled row.

    Args:
        server: whose database is read.
        beacons: with the results and journal entries that were acknowledged to them.
        rollouts: ids that were acknowledged.
        releases: firmware id → checksum, as acknowledged.
    """
    wrong = []
    ends = {
        row[0]: row[1:] for row in server.query_rows("select id, beacon_id, result from attempts")
    }
    entries = server.query_rows("select beacon_id, seq from journal")
    for beacon in beacons:
        for attempt, word in list(beacon.acknowledged.ends.items()):
            if ends.get(attempt) != (beacon.id, word):
                wrong.append(f"{beacon.id}: {attempt} was {word}, is {ends.get(attempt)}")
        kept = {seq for name, seq in entries if name == beacon.id}
        if missing := set(beacon.acknowledged.entries) - kept:
            wrong.append(f"{beacon.id}: journal entries {sorted(missing)} are missing")
    if len(entries) != len(set(entries)):
        wrong.append("a journal entry is there twice")
    for name, rollout, count in server.query_rows(
        "select beacon_id, rollout_id, count(*) from attempts where result = 'success'"
        " group by beacon_id, rollout_id having count(*) > 1"
    ):
        wrong.append(f"{name}: {count} successes in {rollout}")
    made = [row[0] for row in server.query_rows("select firmware_id from rollouts")]
    if len(made) != len(set(made)):
        wrong.append("a release has two rollouts")
    known = {row[0] for row in server.query_rows("select id from rollouts")}
    if missing := set(rollouts) - known:
        wrong.append(f"rollouts {missing} are missing")
    stored = dict(server.query_rows("select id, checksum from firmwares"))
    for firmware, checksum in list(releases.items()):
        if stored.get(firmware) != checksum:
            wrong.append(f"release {firmware} is {stored.get(firmware)}")
    return wrong


def find_incomplete(server: ServerProcess) -> list[str]:
    """Return incomplete data: rows whose image is missing or damaged, a broken audit chain.

    A row is written after its file, so the rows are read first; files of running uploads are no
    violation.
    """
    wrong = []
    for (digest,) in server.query_rows("select distinct blob from firmwares"):
        path = server.data / "blobs" / digest
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            wrong.append(f"image {digest} is not whole")
    try:
        server.admin_client().verify_audit()
    except BeaconOtaError as error:
        wrong.append(f"audit log: {error}")
    return wrong


def find_leftovers(server: ServerProcess) -> list[str]:
    """Return files without a row; call it only while no upload runs."""
    known = {row[0] for row in server.query_rows("select blob from firmwares")}
    there = {path.name for path in (server.data / "blobs").iterdir()}
    wrong = [f"file {name} without a release" for name in there - known]
    return wrong + [f"left over: {path.name}" for path in (server.data / "incoming").iterdir()]
