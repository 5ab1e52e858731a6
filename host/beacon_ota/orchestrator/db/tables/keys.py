"""A beacon's keys: the one that it used last, and those that it may have been given since.

Only the beacon knows which of the given keys have reached it, so a key is dropped only when the
beacon has signed with one that was given later. ``key`` is the one that it used last;
``given_keys`` are those given since, oldest first; ``next_key`` is the one that the beacon is to
get, None when that is ``key``.
"""

from sqlalchemy import Connection

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.db.tables import Fields, beacons
from beacon_ota.orchestrator.limits import LIMITS

SIZE = 32  # bytes of a key


def split_keys(given: bytes | None) -> tuple[bytes, ...]:
    """Return the keys of a column, oldest first."""
    given = bytes(given or b"")
    return tuple(given[at : at + SIZE] for at in range(0, len(given), SIZE))


def usable_keys(row: Fields) -> tuple[bytes, ...]:
    """Return every key that a beacon may sign with, the one that it last used first."""
    return (bytes(row["key"]), *split_keys(row["given_keys"]))


def add_key(conn: Connection, row: Fields, new: bytes) -> Fields | None:
    """Add a new key to those that a beacon may have; return its row.

    Raises:
        UsageError: ``keys_outstanding``: too many keys have not been used yet.
    """
    values = columns_after_add(row, new)
    if len(split_keys(values["given_keys"])) > LIMITS.given_keys:
        raise UsageError(
            "keys_outstanding",
            "this beacon has been given many keys and has used none of them: let it be heard, or "
            "remove and register it again",
            found=len(split_keys(row["given_keys"])),
            expected=LIMITS.given_keys,
        )
    return beacons.update_columns(conn, row["id"], **values)


def columns_after_add(row: Fields, new: bytes) -> Fields:
    """Return the columns after a beacon was given a key.

    A key that is given a second time is listed again, at its new place: a key given in between
    may reach the beacon after the first delivery and before the second.
    """
    known = usable_keys(row)
    return _columns(known if known[-1] == new else (*known, new))


def columns_after_use(row: Fields, key: bytes) -> Fields:
    """Return the columns that change when a beacon has used a key; none when it is no news.

    Keys that were first given before it cannot be the beacon's any more; once the newest key is
    used, no other key can.
    """
    known = usable_keys(row)
    if key == known[0] or key not in known:
        return {}
    return _columns((key,) if key == known[-1] else known[known.index(key) :])


def _columns(known: tuple[bytes, ...]) -> Fields:
    return {
        "key": known[0],
        "given_keys": b"".join(known[1:]) or None,
        "next_key": None if known[-1] == known[0] else known[-1],
    }


def record_use(conn: Connection, beacon_id: str, key: bytes) -> Fields | None:
    """Note that a beacon has used a key; return its row, None when that is no news."""
    row = beacons.get(conn, beacon_id)
    values = {} if row is None else columns_after_use(row, key)
    return beacons.update_columns(conn, beacon_id, **values) if values else None
