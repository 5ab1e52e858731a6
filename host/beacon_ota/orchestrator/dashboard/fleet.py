"""The fleet as rows, and as a map of buildings and floors; computed anew for every page."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from markupsafe import Markup, escape
from sqlalchemy import Connection, select

from beacon_ota.orchestrator.api.firmwares import find_release_roles
from beacon_ota.orchestrator.core.health import HEALTH_LABELS, health_label, unresolved_failure
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db.schema import beacons
from beacon_ota.orchestrator.db.tables import Fields
from beacon_ota.orchestrator.rollout.rules import version_key
from beacon_ota.orchestrator.rollout.types import Attempt

FLAGS = ("insecure", "clock_unset")
REMOVED = "removed"  # status of a beacon that has attempts but is not registered any more


class BeaconRow(NamedTuple):
    """A beacon in a listing."""

    id: str
    device_type: str
    version: str
    site: str
    building: str
    channel: str
    tags: tuple[str, ...]
    state: str  # of health.HEALTH_LABELS, or REMOVED
    behind: bool  # a newer stable release exists
    last_seen: float | None
    address: str
    progress: int | None
    failure: Attempt | None
    flags: tuple[str, ...]

    @property
    def badge(self) -> str:
        """The class of its colour: the status label, or ``behind`` for a valid old release."""
        return "behind" if self.behind and self.state == "valid" else self.state


class Fleet:
    """All registered beacons at one moment."""

    def __init__(self, service: Service, now: float, flagged: dict[str, tuple[str, ...]]):
        view = service.fleet
        self.now = now
        self.releases = view.releases.copy()
        releases = [one.row for one in self.releases.values()]
        self.roles = find_release_roles(releases)
        newest = {
            one["device_type"]: version_key(one["version"])
            for one in releases
            if self.roles.get(one["id"]) == "current"
        }
        of = view.places.place_of
        self.rows: list[BeaconRow] = []
        for key, node in sorted(view.beacons.copy().items()):
            facts = node.beacon
            state = health_label(node, self.releases, now)
            running, best = version_key(facts.version), newest.get(facts.device_type)
            self.rows.append(
                BeaconRow(
                    key,
                    facts.device_type,
                    facts.version,
                    facts.site,
                    of(facts.site).building,
                    facts.channel,
                    tuple(sorted(facts.tags)) if facts.tags else (),
                    state,
                    best is not None and running is not None and running < best,
                    node.last_seen,
                    node.address,
                    node.progress if state == "updating" else None,
                    unresolved_failure(node, tuple(node.attempts), self.releases)
                    if state in ("failed", "quarantined")
                    else None,
                    flagged.get(key, ()),
                )
            )

    @cached_property
    def states(self) -> Counter[str]:
        """Numbers of beacons by status label."""
        return Counter(row.state for row in self.rows)

    @cached_property
    def flags(self) -> Counter[str]:
        """Numbers of beacons by flag."""
        return Counter(flag for row in self.rows for flag in row.flags)

    def count_below(self, site: str) -> int:
        """Return the number of beacons at a site and below it; without a site, of all."""
        return sum(not site or (row.site + "/").startswith(site + "/") for row in self.rows)

    @cached_property
    def versions(self) -> list["Version"]:
        """The versions that run, newest first; beacons that never reported one come last."""
        counts = Counter((row.device_type, row.version) for row in self.rows)
        known = {(r.row["device_type"], r.row["version"]): r.row for r in self.releases.values()}
        found = [
            Version(device_type, version, count, known.get((device_type, version)), self.roles)
            for (device_type, version), count in counts.items()
        ]
        found.sort(key=lambda one: (one.device_type, one.version))
        found.sort(key=lambda one: version_key(one.version) or (), reverse=True)
        for rank, one in enumerate(found):
            one.rank = min(rank, 7)
        return found


@dataclass(slots=True)
class Version:
    """A version with the number of beacons that run it, and its release if there is one."""

    device_type: str
    version: str
    count: int
    release: Fields | None
    roles: dict[str, str]
    rank: int = 0

    @property
    def role(self) -> str:
        """The release's role or state; without a release "unknown" or "never said"."""
        if self.release is None:
            return "unknown" if self.version else "never said"
        return self.roles.get(self.release["id"]) or self.release["state"]


def load_fleet(service: Service, now: float) -> Fleet:
    """Return the present fleet."""
    return Fleet(service, now, service.db.read_now(_read_flagged))


def _read_flagged(conn: Connection) -> dict[str, tuple[str, ...]]:
    """Return by id the flags of beacons that report reduced protection."""
    c = beacons.c
    query = select(c.id, c.insecure, c.clock_unset).where(c.insecure | c.clock_unset)
    return {
        row.id: tuple(flag for flag, on in zip(FLAGS, row[1:], strict=True) if on)
        for row in conn.execute(query)
    }


# ---- the map ----


@dataclass(slots=True)
class Floor:
    """A place with beacons: a floor, or the building itself."""

    path: str
    name: str
    rows: list[BeaconRow] = field(default_factory=list)

    @property
    def states(self) -> list[tuple[str, int]]:
        """Badges with their numbers of beacons, in the order of the legend."""
        counts = Counter(row.badge for row in self.rows)
        return [(badge, counts[badge]) for badge in BADGES if counts[badge]]


@dataclass(slots=True)
class Building:
    """A building with its floors, the highest first."""

    path: str
    name: str
    site: str  # name of its site, "" at the top
    floors: dict[str, Floor] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """The number of beacons in the building."""
        return sum(len(floor.rows) for floor in self.floors.values())

    @property
    def states(self) -> Counter[str]:
        """Numbers of beacons by badge."""
        return Counter(row.badge for floor in self.floors.values() for row in floor.rows)


# Names of badges that differ from their label.
BADGE_NAMES = {
    "valid": "up to date",
    "trial": "on trial",
    "unseen": "never seen",
    "board": "other board",
    "clock_unset": "no clock",
}
BADGES = tuple(
    badge
    for state in reversed(HEALTH_LABELS)
    for badge in (("valid", "behind") if state == "valid" else (state,))
)


def group_by_building(rows: Iterable[BeaconRow], sites: Iterable[Fields]) -> list[Building]:
    """Sort beacons into buildings and floors; beacons without a site come last.

    Args:
        sites: rows of the site table; sites without beacons are not shown.
    """
    names = {site["path"]: site["name"] for site in sites}
    found: dict[str, Building] = {}
    for row in rows:
        building = found.get(row.building)
        if building is None:
            above = row.building.rpartition("/")[0]
            building = found[row.building] = Building(
                row.building,
                _site_name(names, row.building),
                _site_name(names, above) if above else "",
            )
        floor = building.floors.get(row.site)
        if floor is None:
            inside = row.site.removeprefix(row.building).strip("/")
            label = names.get(row.site) if inside else ""
            floor = building.floors[row.site] = Floor(row.site, label or inside or "–")
        floor.rows.append(row)
    for building in found.values():
        paths = sorted(building.floors, key=natural_key)
        if all(path.rpartition("/")[2].isdigit() for path in paths if path != building.path):
            paths.reverse()  # the highest floor first
        building.floors = {path: building.floors[path] for path in paths}
    return sorted(found.values(), key=lambda one: (one.path == "", natural_key(one.path)))


def render_cells(rows: Iterable[BeaconRow], ranks: Mapping[tuple[str, str], int]) -> Markup:
    """Return the HTML of a floor's cells; without a template, which is slow for thousands."""
    made = []
    tab = ""
    for row in rows:
        badge = row.badge
        name = escape(row.id)
        text = [
            row.id,
            row.version or "?",
            BADGE_NAMES.get(badge, badge),
            *(BADGE_NAMES.get(flag, flag) for flag in row.flags),
        ]
        if row.progress is not None:
            text[2] += f" {row.progress} %"
        made.append(
            f'<a class="c s-{badge} v{ranks[row.device_type, row.version]}'
            f'{" flagged" if row.flags else ""}" id="c-{name}" href="/beacons/{name}"{tab}'
            f' title="{escape(" · ".join(text))}"></a>'
        )
        tab = " tabindex=-1"  # one stop of the Tab key per floor
    return Markup("".join(made))


def natural_key(text: str) -> tuple:
    """Return a sort key that puts 2 before 10."""
    return tuple(
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d+)", text)
    )


def _site_name(names: dict[str, str], path: str) -> str:
    return names.get(path) or path.rpartition("/")[2] or "No site"
