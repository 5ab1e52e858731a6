"""``POST /api/beacons/{beacon_id}/ota_status``: what a beacon says of its update.

An attempt has one result, and the first final report settles it. Repeated ones change nothing and
are answered as if they were the first, so that a beacon stops repeating itself.
"""

import asyncio
import hashlib
import json
import math
from collections import Counter
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy import Connection

from beacon_ota.orchestrator.beacon_api.auth import Caller, rekey
from beacon_ota.orchestrator.core.service import Counts, Service, going_on, outcome_event
from beacon_ota.orchestrator.core.stops import StopBoard
from beacon_ota.orchestrator.core.view import Node, attempt_of
from beacon_ota.orchestrator.db.database import StorageError
from beacon_ota.orchestrator.db.tables import Fields, attempts, beacons
from beacon_ota.orchestrator.http import asgi
from beacon_ota.orchestrator.http.asgi import Scope, Send
from beacon_ota.orchestrator.http.problems import Problem
from beacon_ota.orchestrator.rollout.decide import is_other_board, may_go_on
from beacon_ota.orchestrator.rollout.types import Attempt, Result
from beacon_ota.wire import journal
from beacon_ota.wire import report as wire
from beacon_ota.wire.shapes import is_number

_UNDER_WAY = tuple(word for word in wire.STATUSES if word != "idle")
_UNMADE = ("failed", "rolled_back")
# With which statuses a field means something, and is checked: what else is sent is let go.
_MEANT = {
    **dict.fromkeys(
        ("update_status", "firmware_version", "updated_at", "image_sha256", "journal"),
        wire.STATUSES,
    ),
    **dict.fromkeys((*attempts.MEASURED, "clock_unset", "insecure"), wire.STATUSES),
    **dict.fromkeys(("attempt_id", "firmware_id", "previous_version"), _UNDER_WAY),
    **dict.fromkeys(("stage", "code", "detail"), _UNMADE),
    "progress": ("downloading",),
    "acquitted": ("rolled_back",),
}


class Recorded(NamedTuple):
    """What a report came to in the database."""

    how: str  # first, late, undone, repeated; "" when it settles nothing
    row: Fields | None  # of the attempt
    events: tuple[Fields, ...] = ()
    others: tuple[Fields, ...] = ()  # earlier attempts of the beacon that it says more about
    called_off: bool = False  # the attempt may not go on, and nothing was recorded


async def status(
    service: Service, caller: Caller[Node], body: bytes, scope: Scope, send: Send
) -> None:
    """Take a report. 409 and 410 tell the beacon to stop before it boots the release."""
    node = caller.beacon
    if scope["path"].split("/")[3] != node.facts.id:
        raise Problem(403, "beacon_mismatch", "a beacon reports for itself only")
    doc = read(body, service.counts)
    word = doc["update_status"]
    service.counts.reports[word] += 1
    attempt = None if word == "idle" else await _attempt(service, node, doc)
    if attempt is not None and word not in wire.FINAL:
        check_going_on(service, attempt, node)
    if word == "success":
        _check_success(service, attempt, doc)

    version = ""
    if attempt is not None:
        version = service.view.releases[attempt.firmware_id].row["version"]
    now = service.clock.now()
    _hear(service, node, doc, now, asgi.address(scope))
    entries, ack = doc.pop("journal", []), doc.pop("journal_ack", 0)
    if word != "downloading" or entries or attempt is None or attempt.taken_at is None:
        try:
            recorded = await asyncio.shield(
                service.db.write(
                    _record,
                    service.stops,
                    now,
                    node.facts.id,
                    None if attempt is None else attempt.id,
                    doc,
                    entries,
                    version,
                    then=lambda done: _recorded(service, done),
                )
            )
        except StorageError:
            if attempt is not None and word in _UNMADE:
                service.not_recorded(attempt, Result(word))
            raise
    else:  # progress of the moment
        recorded = Recorded("", None)
    if attempt is not None:
        if word in wire.FINAL:
            node.progress = None
        else:
            if recorded.row is not None and recorded.row["result"] is not None:
                raise Problem(409, "attempt_over", "the attempt has ended", found=attempt.id)
            service.heed()
            if recorded.called_off or service.view.is_stopped(attempt):
                raise _stopped("halted", attempt)
            node.progress = doc.get("progress", 0 if word == "downloading" else 100)
            service.hub.tell(
                now,
                f"attempt.{word}",
                attempt.id,
                {
                    "beacon": node.facts.id,
                    "rollout": attempt.rollout_id,
                    "progress": node.progress,
                },
            )
    else:
        service.hub.tell(now, "beacon.reported", node.facts.id, {})
    answer: Fields = {"ok": True, "server_time": int(service.clock.now())}
    if ack:
        answer["journal_ack"] = ack
    if recorded.how:
        answer["recorded"] = recorded.how
    if node.next_key is not None and caller.key != node.next_key:
        answer["rekey"] = rekey(caller.key, node.next_key, caller.nonce)
    payload = json.dumps(answer).encode()
    seal = caller.seal(200, hashlib.sha256(payload).hexdigest())
    await asgi.respond(send, 200, payload, (asgi.JSON, seal))


def read(body: bytes, counts: Counts | None = None) -> Fields:
    """Return a report: the fields that the contract gives to its status, all within their bounds.

    What is broken and not needed is mended or left out (``wire.report``). ``journal`` holds the
    entries to store, ``journal_ack`` the number to acknowledge.

    Args:
        counts: takes how many fields and journal entries broke the contract.

    Raises:
        Problem: ``report_syntax``, or ``report_field`` naming a field that is needed.
    """
    try:
        text = body.decode("utf-8", "replace")
        doc = json.loads(text, parse_constant=_no_constant, parse_int=_number)
    except (ValueError, RecursionError):
        raise Problem(422, "report_syntax", "the body is not JSON") from None
    try:
        fields, faults = wire.read_report(doc)
    except wire.ReportError as error:
        raise Problem(
            422, "report_field", f"{error.field}: {error.reason}", found=error.field
        ) from None
    counts = counts or Counts()
    counts.fields.update(faults)
    word = fields["update_status"]
    found = {name: value for name, value in fields.items() if word in _MEANT.get(name, ())}
    if "journal" in found:
        found["journal"], found["journal_ack"] = _journal(found["journal"], counts.entries)
    return found


def _journal(sent: Any, counts: Counter[str]) -> tuple[list[list[Any]], int]:
    """Return the journal entries to store, oldest first, and the number to acknowledge; or 0.

    An entry that breaks the contract is cut to its bounds or dropped, and acknowledged like the
    others, or its beacon would send it for ever. What is beyond the entries of one report is left
    for the next one.

    Args:
        sent: the report's field.
        counts: takes how many were ``clipped`` and ``dropped``.
    """
    if not isinstance(sent, list):
        return [], 0
    numbered = []
    for entry in sent:
        if isinstance(entry, list) and entry and is_number(entry[0], 1, journal.MAX_SEQ):
            numbered.append(entry)
        else:
            counts["dropped"] += 1
    numbered.sort(key=itemgetter(0))
    del numbered[journal.MAX_ENTRIES :]
    kept = []
    for entry in numbered:
        mended = journal.repair_entry(entry)
        if mended is None:
            counts["dropped"] += 1
            continue
        counts["clipped"] += mended != entry
        kept.append(mended)
    return kept, numbered[-1][0] if numbered else 0


def check_going_on(service: Service, attempt: Attempt, node: Node) -> None:
    """Refuse to go on with an attempt that is over (409) or was called off (410)."""
    if attempt.result is not None:
        raise Problem(409, "attempt_over", "the attempt has ended", found=attempt.id)
    entry = service.view.entries.get(attempt.rollout_id)
    release = service.view.releases[attempt.firmware_id]
    board = release.row["device_type"]
    if attempt.rebooting_at is None and is_other_board(node.facts, board):
        raise Problem(
            409,
            "device_type_mismatch",
            "the release is for another board",
            found=node.facts.said_type or node.facts.device_type,
            expected=board,
        )
    if entry is None:
        raise _stopped("over", attempt)
    channel = node.facts.open_channel
    if not may_go_on(entry.state.status, release.state, attempt, channel=channel):
        raise _stopped(entry.state.status.value, attempt)
    begun = attempt.taken_at is not None or attempt.rebooting_at is not None
    if not begun and service.lease is not None and service.lease.is_over():
        raise Problem(
            410,
            "mirror_lease",
            "this mirror has been without its primary for too long to hand anything out",
            found=attempt.id,
        )


def _stopped(state: str, attempt: Attempt) -> Problem:
    return Problem(410, "rollout_halted", f"the rollout is {state}", found=attempt.rollout_id)


async def _attempt(service: Service, node: Node, doc: Fields) -> Attempt:
    """Return the attempt that a report is about.

    Raises:
        Problem: 409 ``attempt_unknown``: none of this beacon and firmware.
    """
    attempt = service.view.open.get(doc["attempt_id"])
    if attempt is None:
        await service.catch_up()  # offered by another process, a moment ago
        attempt = service.view.open.get(doc["attempt_id"])
    if attempt is None:
        row = await service.db.read_for_beacon(attempts.get, doc["attempt_id"])
        attempt = None if row is None else attempt_of(row)
    if (
        attempt is None
        or attempt.beacon_id != node.facts.id
        or attempt.firmware_id != doc["firmware_id"]
    ):
        raise Problem(409, "attempt_unknown", "no such attempt", found=doc["attempt_id"])
    return attempt


def _check_success(service: Service, attempt: Attempt | None, doc: Fields) -> None:
    """Only the new image itself can say that it runs."""
    assert attempt is not None
    expected = service.view.releases[attempt.firmware_id].row["checksum"]
    if doc["image_sha256"] != expected:
        raise Problem(
            409,
            "image_mismatch",
            "success counts only from the release's own image",
            found=doc["image_sha256"],
            expected=expected,
        )


def _hear(service: Service, node: Node, doc: Fields, now: float, address: str) -> None:
    """Take from a report what the beacon runs; `firmware_version` is not that on the way."""
    word = doc["update_status"]
    own = word in ("idle", "success", "rolled_back")
    facts = node.facts
    running = doc.get("firmware_version" if own else "previous_version", facts.version)
    image = doc.get("image_sha256", facts.image)
    on_trial = facts.on_trial and word not in ("success", "rolled_back")
    service.view.heard(node, now, running, image, on_trial, address)
    node.query = b""


def _record(
    conn: Connection,
    stops: StopBoard,
    now: float,
    beacon_id: str,
    attempt_id: str | None,
    doc: Fields,
    entries: list[list[Any]],
    version: str,
) -> Recorded:
    """Store a report in one transaction: journal, history, and what it does to its attempt."""
    word = doc["update_status"]
    if attempt_id is not None and word not in wire.FINAL:
        may, row = going_on(conn, stops, attempt_id)
        if not may:
            return Recorded("", row, called_off=True)
    if entries:
        beacons.keep_journal(conn, beacon_id, entries, now)
    if attempt_id is None:
        beacons.report(conn, beacon_id, None, now, word, json.dumps(doc))
        beacons.said(conn, beacon_id, doc)
        return Recorded("", None)
    told: list[Fields] = []
    others: list[Fields] = []
    how = ""
    if word in wire.FINAL:
        at = attempts.dated(conn, attempt_id, now)
        how, row = attempts.finish(conn, at, doc)
        if row is not None and how != "repeated":
            others = attempts.undo_earlier(conn, at, doc, row)
            if how == "first":
                told.append(outcome_event(conn, now, row, version))
            undone = [*others, row] if how == "undone" and row["result"] == "success" else others
            told += [outcome_event(conn, now, one, version, "undone") for one in undone]
    elif word == "rebooting":
        row = attempts.rebooting(conn, attempt_id, now)
    else:
        row = attempts.take(conn, attempt_id, now)
    if how != "repeated":
        beacons.report(conn, beacon_id, attempt_id, now, word, json.dumps(doc))
    return Recorded(how, row, tuple(told), tuple(others))


def _recorded(service: Service, done: Recorded) -> None:
    for row in (*done.others, done.row):
        service.put_attempt(row)
    for event in done.events:
        service.hub.publish(event)


def _no_constant(word: str) -> None:
    raise ValueError(word)


def _number(digits: str) -> float:
    """Return a whole number; one that is out of every range, without reading its digits."""
    return int(digits) if len(digits) < 24 else math.inf
