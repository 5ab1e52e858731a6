"""The filters of the listing of beacons: reads them from the address, and applies them."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from beacon_ota.orchestrator.core.health import HEALTH_LABELS
from beacon_ota.orchestrator.dashboard.fleet import FLAGS, REMOVED, BeaconRow, Fleet
from beacon_ota.orchestrator.dashboard.page_base import PageRequest, build_link
from beacon_ota.orchestrator.db.tables import outcomes
from beacon_ota.orchestrator.db.tables.outcomes import OutcomeFilter
from beacon_ota.orchestrator.http.problems import Problem, not_found
from beacon_ota.orchestrator.rollout.rules import version_key

PAGE = 100
SORTS = ("id", "version", "site", "state", "seen")
_EXACT = {
    "building": lambda row: row.building,
    "place": lambda row: row.site,
    "version": lambda row: row.version,
    "device_type": lambda row: row.device_type,
    "channel": lambda row: row.channel,
}
NONE = "-"  # an empty field: version=- selects beacons that never reported one


@dataclass(frozen=True, slots=True)
class Selection:
    """The filters of a listing; None does not filter.

    Attributes:
        look: ``behind`` (valid, with a newer stable release) or ``current``.
        site: a path and all below it. place: exactly that path. building: a building.
        cell: ``wave.stage.count`` of the rollout's counts; an empty part matches any.
        result: the result of an attempt, or ``any`` failure. failure: its ``stage/code``. cause:
            its reset cause. They apply to attempts at the release or in the rollout, if given.
        release: the release that runs or, with one of those three, was tried.
        hours: the attempt ended within so many hours.
    """

    q: str | None = None
    state: str | None = None
    look: str | None = None
    flag: str | None = None
    site: str | None = None
    building: str | None = None
    place: str | None = None
    version: str | None = None
    device_type: str | None = None
    channel: str | None = None
    tag: str | None = None
    rollout: str | None = None
    cell: str | None = None
    release: str | None = None
    result: str | None = None
    failure: str | None = None
    cause: str | None = None
    hours: str | None = None

    @classmethod
    def of(cls, query: dict[str, str]) -> "Selection":
        """Read the filters from a query; unknown names are ignored."""
        names = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in query.items() if key in names and value})

    @property
    def given(self) -> dict[str, str]:
        """The filters that are set."""
        return {
            field.name: value
            for field in fields(self)
            if (value := getattr(self, field.name)) is not None
        }

    @property
    def tried(self) -> bool:
        """Whether the filters are about attempts."""
        return any(one is not None for one in (self.result, self.failure, self.cause))

    def href(self, **changed: Any) -> str:
        """Return the listing's address with some filters changed; None removes one."""
        return build_link("/beacons", **{**self.given, **changed})

    def apply(self, fleet: Fleet, ask: PageRequest) -> list[BeaconRow]:
        """Return the matching beacons, by id.

        Raises:
            Problem: 422 ``selection`` for an invalid value; 404 for an unknown release or rollout.
        """
        rows: Iterable[BeaconRow] = fleet.rows
        behind = self._beacons_behind(ask)
        if behind is not None:
            known = {row.id for row in fleet.rows}
            rows = [row for row in rows if row.id in behind]
            rows += [_removed_row(beacon_id) for beacon_id in sorted(behind - known)]
        for check in self._row_filters(fleet):
            rows = filter(check, rows)
        return list(rows)

    def _row_filters(self, fleet: Fleet):
        if self.q is not None:
            words = self.q.lower().split()
            yield lambda row: _matches_words(row, words)
        if self.state is not None:
            state = _require_one_of("state", self.state, (*HEALTH_LABELS, REMOVED))
            yield lambda row: row.state == state
        if self.look is not None:
            behind = _require_one_of("look", self.look, ("behind", "current")) == "behind"
            yield lambda row: row.behind is behind and row.state != REMOVED
        if self.flag is not None:
            flag = _require_one_of("flag", self.flag, FLAGS)
            yield lambda row: flag in row.flags
        if self.site is not None:
            site = "" if self.site == NONE else self.site
            under = site + "/"
            yield lambda row: row.site == site or (site and row.site.startswith(under))
        for name, of in _EXACT.items():
            wanted = getattr(self, name)
            if wanted is not None:
                value = "" if wanted == NONE else wanted
                yield lambda row, of=of, value=value: of(row) == value
        if self.tag is not None:
            yield lambda row: self.tag in row.tags
        if self.release is not None and not self.tried:
            release = fleet.releases.get(self.release)
            if release is None:
                raise not_found("release", self.release)
            runs = (release.row["device_type"], release.row["version"])
            yield lambda row: (row.device_type, row.version) == runs

    def _beacons_behind(self, ask: PageRequest) -> set[str] | None:
        """Return the ids of the beacons behind a count or behind failures; None for all."""
        found = None
        if self.rollout is not None and self.cell is not None:
            entry = ask.service.fleet.rollouts.get(self.rollout)
            if entry is None:
                raise not_found("rollout in memory", self.rollout)
            parts = (self.cell.split(".") + ["", "", ""])[:3]
            found = {
                beacon_id
                for beacon_id, where in ask.engine.locate_beacons(entry, ask.now).items()
                if all(part in ("", str(is_)) for part, is_ in zip(parts, where, strict=True))
            }
        if self.tried:
            stage, slash, code = (self.failure or "").partition("/")
            which = OutcomeFilter(
                result=None if self.result == "any" else self.result,
                stage=None if self.failure is None else stage,
                code=code if slash else None,
                firmware_id=self.release,
                rollout_id=self.rollout,
                cause=_parse_number("cause", self.cause),
                since=hours_ago(self.hours, ask.now),
            )
            tried = ask.read(outcomes.list_beacons, which)
            found = tried if found is None else found & tried
        return found


def hours_ago(hours: str | None, now: float) -> float | None:
    """Return the time so many hours ago, UTC seconds.

    Raises:
        Problem: 422 ``selection``.
    """
    given = _parse_number("hours", hours)
    return None if given is None else now - given * 3600.0


def _parse_number(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 6):
        raise Problem(422, "selection", f"{name} is a whole number", found=text[:80])
    return int(text)


def sort_rows(rows: list[BeaconRow], by: str) -> list[BeaconRow]:
    """Return rows sorted by a column; ``-`` before its name reverses the order."""
    name = by.removeprefix("-")
    turned = by.startswith("-")
    places = {state: rank for rank, state in enumerate((*HEALTH_LABELS, REMOVED))}
    keys = {
        "version": lambda row: version_key(row.version) or (),
        "site": lambda row: row.site,
        "state": lambda row: places[row.state],
        "seen": lambda row: row.last_seen or 0.0,
    }
    if name in keys:
        return sorted(rows, key=keys[name], reverse=turned)
    return rows[::-1] if turned else rows


def _matches_words(row: BeaconRow, words: list[str]) -> bool:
    text = " ".join((row.id, row.version, row.site, row.state, row.address, *row.tags)).lower()
    return all(word in text for word in words)


def _require_one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise Problem(
            422, "selection", f"{name} cannot be that", found=value[:80], expected=list(allowed)
        )
    return value


def _removed_row(beacon_id: str) -> BeaconRow:
    return BeaconRow(beacon_id, "", "", "", "", "", (), REMOVED, False, None, "", None, None, ())
