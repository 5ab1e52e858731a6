"""``POST /api/beacons/{beacon_id}/ota_status``: stores a beacon's report about an update.

An attempt has one result: the first final report sets it. A repeated report changes nothing and
gets the same answer, so that the beacon stops repeating it.
"""

import asyncio
import hashlib
import json
from typing import Any, NamedTuple

from sqlalchemy import Connection

from beacon_ota.orchestrator.beacon_api.auth import Caller, wrap_new_key
from beacon_ota.orchestrator.beacon_api.continuation import check_may_continue, halted_problem
from beacon_ota.orchestrator.beacon_api.report_parser import (
    FAILED_STATUSES,
    parse_report,
)
from beacon_ota.orchestrator.core.attempts import may_attempt_continue, record_outcome_event
from beacon_ota.orchestrator.core.fleet_records import BeaconState, attempt_from_row
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.core.stop_board import StopBoard
from beacon_ota.orchestrator.db.connection import StorageError
from beacon_ota.orchestrator.db.tables import Fields, attempts, beacons
from beacon_ota.orchestrator.http import asgi
from beacon_ota.orchestrator.http.asgi import Scope, Send
from beacon_ota.orchestrator.http.problems import Problem
from beacon_ota.orchestrator.rollout.types import Attempt, Result
from beacon_ota.wire import report as wire


class RecordedReport(NamedTuple):
    """The effect of a report on the database."""

    how: str  # first, late, undone, repeated; "" without an effect on the result
    row: Fields | None  # the attempt
    events: tuple[Fields, ...] = ()
    others: tuple[Fields, ...] = ()  # earlier attempts that the report changes as well
    called_off: bool = False  # the attempt may not go on, and nothing was recorded


async def accept_report(
    service: Service, caller: Caller[BeaconState], body: bytes, scope: Scope, send: Send
) -> None:
    """Store and answer a report. 409 and 410 make the beacon stop before it boots the release."""
    node = caller.beacon
    if scope["path"].split("/")[3] != node.beacon.id:
        raise Problem(403, "beacon_mismatch", "a beacon reports for itself only")
    doc = parse_report(body, service.counts)
    word = doc["update_status"]
    service.counts.reports[word] += 1
    attempt = None if word == "idle" else await _find_attempt(service, node, doc)
    if attempt is not None and word not in wire.FINAL:
        check_may_continue(service, attempt, node)
    if word == "success":
        _check_success_image(service, attempt, doc)

    version = ""
    if attempt is not None:
        version = service.fleet.releases[attempt.firmware_id].row["version"]
    now = service.clock.now()
    _update_beacon(service, node, doc, now, asgi.client_address(scope))
    entries, ack = doc.pop("journal", []), doc.pop("journal_ack", 0)
    if word != "downloading" or entries or attempt is None or attempt.taken_at is None:
        try:
            recorded = await asyncio.shield(
                service.db.write(
                    _store_report,
                    service.stops,
                    now,
                    node.beacon.id,
                    None if attempt is None else attempt.id,
                    doc,
                    entries,
                    version,
                    then=lambda done: _publish_recorded(service, done),
                )
            )
        except StorageError:
            if attempt is not None and word in FAILED_STATUSES:
                service.attempts.note_unrecorded(attempt, Result(word))
            raise
    else:  # transient progress is not stored
        recorded = RecordedReport("", None)
    if attempt is not None:
        if word in wire.FINAL:
            node.progress = None
        else:
            if recorded.row is not None and recorded.row["result"] is not None:
                raise Problem(409, "attempt_over", "the attempt has ended", found=attempt.id)
            service.sync_stops()
            if recorded.called_off or service.fleet.is_stopped(attempt):
                raise halted_problem("halted", attempt)
            node.progress = doc.get("progress", 0 if word == "downloading" else 100)
            service.hub.broadcast_transient(
                now,
                f"attempt.{word}",
                attempt.id,
                {
                    "beacon": node.beacon.id,
                    "rollout": attempt.rollout_id,
                    "progress": node.progress,
                },
            )
    else:
        service.hub.broadcast_transient(now, "beacon.reported", node.beacon.id, {})
    answer: Fields = {"ok": True, "server_time": int(service.clock.now())}
    if ack:
        answer["journal_ack"] = ack
    if recorded.how:
        answer["recorded"] = recorded.how
    if node.next_key is not None and caller.key != node.next_key:
        answer["rekey"] = wrap_new_key(caller.key, node.next_key, caller.nonce)
    payload = json.dumps(answer).encode()
    signature = caller.sign_response(200, hashlib.sha256(payload).hexdigest())
    await asgi.send_response(send, 200, payload, (asgi.JSON_TYPE, signature))


async def _find_attempt(service: Service, node: BeaconState, doc: Fields) -> Attempt:
    """Return the attempt that a report is about.

    Raises:
        Problem: 409 ``attempt_unknown``: no attempt of this beacon and release has that id.
    """
    attempt = service.fleet.open_attempts.get(doc["attempt_id"])
    if attempt is None:
        await service.catch_up()  # another process may just have made the offer
        attempt = service.fleet.open_attempts.get(doc["attempt_id"])
    if attempt is None:
        row = await service.db.read_for_beacon(attempts.get, doc["attempt_id"])
        attempt = None if row is None else attempt_from_row(row)
    if (
        attempt is None
        or attempt.beacon_id != node.beacon.id
        or attempt.firmware_id != doc["firmware_id"]
    ):
        raise Problem(409, "attempt_unknown", "no such attempt", found=doc["attempt_id"])
    return attempt


def _check_success_image(service: Service, attempt: Attempt | None, doc: Fields) -> None:
    """Refuse a success that does not come from the release's own image."""
    assert attempt is not None
    expected = service.fleet.releases[attempt.firmware_id].row["checksum"]
    if doc["image_sha256"] != expected:
        raise Problem(
            409,
            "image_mismatch",
            "success counts only from the release's own image",
            found=doc["image_sha256"],
            expected=expected,
        )


def _update_beacon(
    service: Service, node: BeaconState, doc: Fields, now: float, address: str
) -> None:
    """Take version and image that the beacon runs from a report; during an update: the old ones."""
    word = doc["update_status"]
    own = word in ("idle", "success", "rolled_back")
    facts = node.beacon
    running = doc.get("firmware_version" if own else "previous_version", facts.version)
    image = doc.get("image_sha256", facts.image)
    on_trial = facts.on_trial and word not in ("success", "rolled_back")
    service.fleet.contacts.mark_seen(node, now, running, image, on_trial, address)
    node.query = b""


def _store_report(
    conn: Connection,
    stops: StopBoard,
    now: float,
    beacon_id: str,
    attempt_id: str | None,
    doc: Fields,
    entries: list[list[Any]],
    version: str,
) -> RecordedReport:
    """Store a report in one transaction: journal, history, and the effect on its attempt."""
    word = doc["update_status"]
    if attempt_id is not None and word not in wire.FINAL:
        may, row = may_attempt_continue(conn, stops, attempt_id)
        if not may:
            return RecordedReport("", row, called_off=True)
    if entries:
        beacons.add_journal_entries(conn, beacon_id, entries, now)
    if attempt_id is None:
        beacons.add_report(conn, beacon_id, None, now, word, json.dumps(doc))
        beacons.record_self_report(conn, beacon_id, doc)
        return RecordedReport("", None)
    published: list[Fields] = []
    others: list[Fields] = []
    how = ""
    if word in wire.FINAL:
        at = attempts.end_time(conn, attempt_id, now)
        how, row = attempts.record_result(conn, at, doc)
        if row is not None and how != "repeated":
            others = attempts.undo_earlier(conn, at, doc, row)
            if how == "first":
                published.append(record_outcome_event(conn, now, row, version))
            undone = [*others, row] if how == "undone" and row["result"] == "success" else others
            published += [record_outcome_event(conn, now, one, version, "undone") for one in undone]
    elif word == "rebooting":
        row = attempts.mark_rebooting(conn, attempt_id, now)
    else:
        row = attempts.start(conn, attempt_id, now)
    if how != "repeated":
        beacons.add_report(conn, beacon_id, attempt_id, now, word, json.dumps(doc))
    return RecordedReport(how, row, tuple(published), tuple(others))


def _publish_recorded(service: Service, done: RecordedReport) -> None:
    """Bring the fleet state up to date with a stored report, and publish its events."""
    for row in (*done.others, done.row):
        service.attempts.apply_row(row)
    for event in done.events:
        service.hub.publish(event)
