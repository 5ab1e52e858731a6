"""The books of a mirror: the order of its exchanges, for each disk that it has run on.

Every exchange that sends changes has a name (its mark), which the mirror writes to its disk before
it sends the exchange, and the next exchange names it. When a disk was restored from a copy, when
two disks have one content, or when the primary was restored, an exchange names another one than the
primary took last. Then the books have *parted*: the primary takes nothing of that exchange, and the
mirror begins a new book (``epoch``), in which it sends all that it knows.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection, delete, func, insert, select, update

from beacon_ota.orchestrator.db.schema import mirror_books, mirror_halts, mirrors, transitions
from beacon_ota.orchestrator.db.tables import Fields, insert_or_ignore

KEPT_BOOKS = 8  # books per mirror; an older book counts as new if it is ever named again
KEPT_HALTS = 256  # per mirror
_k, _h, _m, _t = mirror_books.c, mirror_halts.c, mirrors.c, transitions.c


class BookPage(NamedTuple):
    """Where an exchange stands in a book.

    Attributes:
        epoch: the name of the book.
        after: mark of the last exchange that the mirror knows to be taken, "" for none; None is
            said by mirrors of the release before, which have no marks.
        mark: the mark of this exchange, "" when it carries no changes.
    """

    epoch: str
    after: str | None = None
    mark: str = ""


class BookComparison(NamedTuple):
    """How an exchange relates to the exchanges that were taken before.

    Attributes:
        seq: the number of the last change that was taken from this book.
        new: the book was not known.
        parted: the exchange does not follow the last one that was taken.
        sure: no change of the exchange can have been taken before.
    """

    seq: int
    new: bool
    parted: bool
    sure: bool


def compare_page(conn: Connection, mirror_id: str, page: BookPage) -> BookComparison:
    """Return how an exchange relates to the exchanges that were taken before."""
    where = (_k.mirror_id == mirror_id) & (_k.epoch == page.epoch)
    row = conn.execute(select(mirror_books).where(where)).first()
    if row is None:
        return BookComparison(0, True, bool(page.after), False)
    mark = row.mark or ""
    if page.after is None:
        return BookComparison(row.seq, False, False, False)
    again = bool(page.mark) and mark == page.mark  # its answer was lost
    return BookComparison(row.seq, False, mark != page.after and not again, mark == page.after)


def record_exchange(conn: Connection, mirror_id: str, page: BookPage, seq: int, now: float) -> None:
    """Note that an exchange was taken."""
    where = (_k.mirror_id == mirror_id) & (_k.epoch == page.epoch)
    values: Fields = {"seq": seq, "told_at": now}
    if page.mark:
        values["mark"] = page.mark
    if not conn.execute(update(mirror_books).where(where).values(**values)).rowcount:
        row = {"mirror_id": mirror_id, "epoch": page.epoch, "mark": page.mark or None}
        conn.execute(insert(mirror_books), {**row, **values})
        _keep(conn, mirror_books, _k.epoch, _k.told_at, mirror_id, KEPT_BOOKS)


def knows_halt(conn: Connection, row: Fields) -> bool:
    """Tell whether a halt that a mirror reports was carried out before.

    Args:
        row: ``rollout_id`` with ``id`` for a halt that a mirror made, or with ``at`` for a halt
            that the mirror had received from its primary.
    """
    name = halt_name(row)
    if name is not None and conn.scalar(select(_h.id).where(_h.id == name)) is not None:
        return True
    if row.get("id") is None and (at := row.get("at")) is not None:
        same = (_t.rollout_id == row["rollout_id"]) & (_t.kind == "halted") & (_t.at == at)
        return conn.execute(select(_t.id).where(same).limit(1)).first() is not None
    return False


def halt_name(row: Fields) -> str | None:
    """Return the name of a halt: its id, or a name on which all mirrors that know it agree.

    None for halts from mirrors of the previous release, which have nothing to tell them apart.
    """
    if row.get("id") is not None or row.get("at") is None:
        return row.get("id")
    text = f"{row['rollout_id']} {float(row['at'])!r}"
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def record_halt(conn: Connection, mirror_id: str, name: str, now: float) -> None:
    """Note that a halt was carried out."""
    row: Fields = {"id": name, "mirror_id": mirror_id, "taken_at": now}
    insert_or_ignore(conn, mirror_halts, [row])
    _keep(conn, mirror_halts, _h.id, _h.taken_at, mirror_id, KEPT_HALTS)


def read_sync_times(conn: Connection) -> Sequence[tuple[str, float]]:
    """Return each known mirror's site, and when the mirror had last reported all its changes."""
    heard = (_m.removed_at.is_(None)) & (_m.seen_at.is_not(None))
    rows = conn.execute(select(_m.site, func.coalesce(_m.even_at, 0.0)).where(heard))
    return [(site, even_at) for site, even_at in rows]


def remove_books(conn: Connection, mirror_id: str) -> None:
    """Forget a mirror's books and halts."""
    conn.execute(delete(mirror_books).where(_k.mirror_id == mirror_id))
    conn.execute(delete(mirror_halts).where(_h.mirror_id == mirror_id))


def _keep(conn: Connection, table, name, at, mirror_id: str, bound: int) -> None:
    mine = table.c.mirror_id == mirror_id
    kept = select(name).where(mine).order_by(at.desc(), name).limit(bound)
    conn.execute(delete(table).where(mine, name.not_in(kept.scalar_subquery())))
