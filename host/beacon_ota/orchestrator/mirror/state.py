"""Parses the primary's answer to a mirror, before anything of it is written down. Pure.

Primary and mirror are upgraded one after the other, so either may be the newer one. Fields that
this release does not know are ignored. A row that it cannot read is named and left out, and the
release of an unreadable rollout is not handed out. An answer of another form is refused as a whole.
"""

import json
from typing import Any, NamedTuple

from sqlalchemy import Boolean, Double, Integer, LargeBinary, String, Table, Text

from beacon_ota import __version__
from beacon_ota.errors import BeaconOtaError, InputError, ReachError, UsageError
from beacon_ota.orchestrator.core.rollout_records import load_state
from beacon_ota.orchestrator.db import schema
from beacon_ota.orchestrator.db.tables import Fields
from beacon_ota.orchestrator.releases.validate import check_blocks
from beacon_ota.orchestrator.rollout.plans import parse_plan
from beacon_ota.orchestrator.rollout.rules import Rollout
from beacon_ota.orchestrator.rollout.types import Result, Site
from beacon_ota.orchestrator.rollout.windows import Places
from beacon_ota.wire.shapes import is_hex

PROTOCOL = 1  # version of the exchange; increased when the other side would misunderstand it
MOVES = 64  # characters
_RELEASE_STATES = ("testing", "stable", "deprecated")
_TABLES = {
    "sites": (schema.sites, "path"),
    "beacons": (schema.beacons, "id"),
    "firmwares": (schema.firmwares, "id"),
    "rollouts": (schema.rollouts, "id"),
    "attempts": (schema.attempts, "id"),
}
_FAULTS = (BeaconOtaError, ValueError, TypeError, KeyError, AttributeError, IndexError)


class PrimaryAnswer(NamedTuple):
    """A primary's answer.

    Attributes:
        seq: the number of the last change that the primary has taken.
        etag: the tag of the state.
        state: the rows of the tables; None when the mirror has them already.
        moves: the newest move of a rollout in the state; "" from a primary that does not send it.
        server_time: UTC seconds, by the primary's clock; None when the primary does not send it.
        version: the primary's release.
        unread: by table, the rows that this release cannot read: id, and the reason.
        again: the primary took no change, and the mirror must send everything under a new epoch.
            The other fields are empty then.
    """

    seq: int
    etag: str
    state: Fields | None
    moves: str
    server_time: float | None
    version: str
    unread: dict[str, dict[str, str]]
    again: bool = False

    def fault(self) -> str:
        """Return a sentence that names the first unreadable row; "" when there is none."""
        for table, rows in self.unread.items():
            for key, why in rows.items():
                more = sum(map(len, self.unread.values())) - 1
                rest = f" (and {more} more)" if more else ""
                return (
                    f"{table} {key}: {why}{rest}; the primary is {self.version or 'older'},"
                    f" this mirror {__version__}"
                )
        return ""


def read_answer(reply: Any) -> PrimaryAnswer:
    """Read an answer.

    Raises:
        ReachError: ``not_an_orchestrator``.
        UsageError: ``mirror_protocol``, with both versions.
    """
    if not isinstance(reply, dict):
        raise _no_orchestrator()
    said, protocol = reply.get("version"), reply.get("protocol", 1)
    version = said[:64] if isinstance(said, str) else ""
    if protocol != PROTOCOL:
        raise UsageError(
            "mirror_protocol",
            f"the primary ({version or 'unknown release'}) speaks another protocol than this"
            f" mirror ({__version__}): bring the older of the two up to the other",
            found=protocol,
            expected=PROTOCOL,
        )
    seq, etag, state = reply.get("seq"), reply.get("etag"), reply.get("state")
    if (
        not isinstance(seq, int)
        or not isinstance(etag, str)
        or not isinstance(state, dict | None)
        or "state" not in reply
    ):
        raise _no_orchestrator()
    moves, at = reply.get("moves"), reply.get("server_time")
    moves = moves if isinstance(moves, str) and len(moves) <= MOVES else ""
    when = float(at) if isinstance(at, int | float) and not isinstance(at, bool) else None
    unread: dict[str, dict[str, str]] = {}
    found = None if state is None else _state(state, unread)
    again = reply.get("again") is True  # an older primary does not send it
    return PrimaryAnswer(seq, etag, found, moves, when, version, unread, again)


def _state(state: Fields, unread: dict[str, dict[str, str]]) -> Fields:
    found: Fields = {}
    for name, (table, key) in _TABLES.items():
        rows = state.get(name)
        if not isinstance(rows, list):
            raise _no_orchestrator()
        found[name] = []
        for row in rows:
            ident = row.get(key) if isinstance(row, dict) else None
            if not isinstance(ident, str):
                raise _no_orchestrator()
            try:
                mine = _row(table, row)
                _CHECKS[name](mine)
                found[name].append(mine)
            except _FAULTS as error:
                unread.setdefault(name, {})[ident[:80]] = _why(error)
    _leave_out(found, unread)
    return found


def _why(error: Exception) -> str:
    said = str(error) or type(error).__name__
    if isinstance(error, BeaconOtaError) and error.found is not None:
        said += f": {error.found!r}"
    return said[:200]


def _leave_out(found: Fields, unread: dict[str, dict[str, str]]) -> None:
    """Leave out the rows that refer to an unreadable row."""
    kept = []
    for row in found["rollouts"]:
        if row["firmware_id"] in unread.get("firmwares", ()):
            unread.setdefault("rollouts", {})[row["id"]] = "its release cannot be read"
        else:
            kept.append(row)
    found["rollouts"] = kept
    found["attempts"] = [
        row
        for row in found["attempts"]
        if row["rollout_id"] not in unread.get("rollouts", ())
        and row["firmware_id"] not in unread.get("firmwares", ())
    ]


def _row(table: Table, row: Fields) -> Fields:
    """Return the known columns of a row, each of its type."""
    found: Fields = {}
    for column in table.columns:
        if column.name not in row:
            if not (column.nullable or column.default is not None):
                raise ValueError(f"{column.name} is not there")
            continue
        value = row[column.name]
        if not _fits(column.type, value, bool(column.nullable)):
            raise ValueError(f"{column.name} cannot be {str(value)[:40]!r}")
        found[column.name] = value
    return found


def _fits(kind: Any, value: Any, nullable: bool) -> bool:
    if value is None:
        return nullable
    if isinstance(kind, LargeBinary):  # in hex; of any number of keys
        return isinstance(value, str) and len(value) % 2 == 0 and is_hex(value, len(value))
    if isinstance(kind, Text):
        return isinstance(value, str)
    if isinstance(kind, String):
        return isinstance(value, str) and len(value) <= (kind.length or 0)
    if isinstance(kind, Boolean):
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    if isinstance(kind, Double):
        return isinstance(value, int | float)
    return isinstance(kind, Integer) and isinstance(value, int) and abs(value) < 1 << 63


# ---- the contents of a row, which pages, decisions and the next start read ----


def _site(row: Fields) -> None:
    Places([Site(row["path"], zone=row.get("tz"), window=row.get("window"), kind=row.get("kind"))])


def _beacon(row: Fields) -> None:
    if not isinstance(json.loads(row.get("tags", "[]")), list):
        raise ValueError("tags are no list")
    if len(row["key"]) != 64:
        raise ValueError("key is none")


def _firmware(row: Fields) -> None:
    if row["state"] not in _RELEASE_STATES:
        raise ValueError(f"state is {row['state']!r}")
    for name in ("manifest", "info"):
        if row.get(name) is not None:
            json.loads(row[name])
    if row.get("blocks") is not None:
        try:
            check_blocks(row["blocks"], row["size"])
        except InputError:
            row["blocks"] = None  # a hint that beacons do not need


def _rollout(row: Fields) -> None:
    plan = parse_plan(json.loads(row["plan"]))
    state = load_state(row["state"])
    Rollout(plan)
    if (plan.rollout_id, plan.release.firmware_id) != (row["id"], row["firmware_id"]):
        raise ValueError("the plan is another one's")
    if state.status.value != row["status"] or len(state.waves) != len(plan.waves):
        raise ValueError("the state is not the plan's")


def _attempt(row: Fields) -> None:
    for name in ("result", "late_result"):
        if row.get(name) is not None:
            Result(row[name])


_CHECKS = {
    "sites": _site,
    "beacons": _beacon,
    "firmwares": _firmware,
    "rollouts": _rollout,
    "attempts": _attempt,
}


def _no_orchestrator() -> ReachError:
    return ReachError("not_an_orchestrator", "the primary answers, but not as one")
