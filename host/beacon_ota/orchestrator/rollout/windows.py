"""Maintenance windows: wall-clock time of a building, as spans of UTC seconds.

One rule: it is the window when the building's own clock says so. On the days when clocks change
this makes a window longer, shorter, double, or absent (all of it inside the skipped hour), and
nothing has to be said about local times that do not exist or exist twice.
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from zoneinfo import ZoneInfo

from beacon_ota.errors import InputError
from beacon_ota.wire import shapes

from .types import Place, Site, Window

DAY_MIN = 1440
WHOLE_DAY = "00:00-24:00"
DEFAULT_WINDOW = Window()
ANY_TIME = (-math.inf, math.inf)
NEVER = (math.inf, math.inf)
SITE_DEPTH_MAX = 8
SITE_PATH_MAX = 200

_DAY = 86_400
_LOOK_BACK = 27 * 3600  # longer than any window, so that none is cut at its beginning
_LOOK_AHEAD = 8 * _DAY  # a window can be absent for a day, never for a week
_PROBE = 6 * 3600  # clocks are not changed there and back within this time
_MEMO_MAX = 4096

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def parse_window(text: str, zone: str = "UTC") -> Window:
    """Read ``HH:MM-HH:MM``, local time of the IANA ``zone``, as beacons read it.

    ``00:00-24:00``, which they have no use for, is any time.

    Raises:
        InputError: ``window_syntax``, ``window_empty``, ``time_zone_unknown``.
    """
    load_zone(zone)
    if text == WHOLE_DAY:
        return Window(0, DAY_MIN, zone)
    if isinstance(text, str):
        ends = shapes.parse_window(text.replace("-24:00", "-00:00"))
        if ends is not None:
            return Window(ends[0], ends[1], zone)
        opens, _, closes = text.partition("-")
        if opens.strip() == closes.strip() and any(
            shapes.parse_window(f"{opens}-{other}") for other in ("00:00", "12:00")
        ):
            raise InputError(
                "window_empty",
                f"the window has no length; any time is {WHOLE_DAY}",
                found=_shown(text),
            )
    raise InputError(
        "window_syntax",
        "a window is written HH:MM-HH:MM",
        found=_shown(text),
        expected="03:00-05:00",
    )


def format_window(window: Window) -> str:
    """Write the hours of a window as :func:`parse_window` reads them."""
    return "-".join(f"{at // 60:02}:{at % 60:02}" for at in (window.start, window.end))


@lru_cache(maxsize=1024)
def load_zone(name: str) -> ZoneInfo:
    """Return the zone of an IANA name, ``Europe/Berlin``.

    Raises:
        InputError: ``time_zone_unknown``.
    """
    # The database's directory also holds other files and other clocks; those are no names.
    if isinstance(name, str) and not name.startswith(("posix", "right/", "localtime")):
        try:
            return ZoneInfo(name)
        except (KeyError, ValueError, OSError):
            pass
    raise InputError(
        "time_zone_unknown",
        "no such time zone",
        found=_shown(name),
        expected="an IANA name: Europe/Berlin",
    )


def utc_offset_min(zone: str, at: float) -> int | None:
    """Return the minutes of a zone's clock before UTC at a time, None for an unknown zone."""
    return _offset(load_zone(zone), math.floor(at)) // 60 if is_known_zone(zone) else None


def is_known_zone(zone: str) -> bool:
    """Tell whether this machine knows a zone; its files may be older than a database."""
    try:
        load_zone(zone)
    except InputError:
        return False
    return True


_memo: dict[Window, tuple[float, float, float]] = {}


def next_window(window: Window, now: float) -> tuple[float, float]:
    """Return the span (start, end) in UTC seconds of the window that is open, or opens next.

    A window of any time is ``ANY_TIME``; one in a zone that this machine does not know ``NEVER``:
    an hour that is none of its window must not be taken for one. The end is the first second
    outside.
    """
    known = _memo.get(window)
    if known is None or not known[0] <= now < known[2]:
        known = _find(window, now)
        if len(_memo) >= _MEMO_MAX:
            _memo.clear()
        _memo[window] = known
    return known[1], known[2]


def _find(window: Window, now: float) -> tuple[float, float, float]:
    """Return (since, start, end): the next span, the right answer from ``since`` to ``end``."""
    if (window.end - window.start) % DAY_MIN == 0:
        return -math.inf, *ANY_TIME
    if not is_known_zone(window.zone):
        return -math.inf, *NEVER
    since = now
    start = end = -math.inf
    for piece_start, piece_end in _pieces(window, math.floor(now)):
        if piece_start == end:  # goes on over a change of the clocks
            end = piece_end
            continue
        if end > now:
            break
        if end > -math.inf:
            since = end
        start, end = piece_start, piece_end
    return since, start, end


def _pieces(window: Window, now: int) -> Iterator[tuple[int, int]]:
    """Yield the window's spans in order, cut where the zone's offset changes."""
    opens = window.start * 60
    length = (window.end - window.start) % DAY_MIN * 60
    for begin, stop, offset in _offsets(load_zone(window.zone), now):
        day = (begin + offset) // _DAY - 1
        while (start := day * _DAY + opens - offset) < stop:
            if start + length > begin:
                yield max(start, begin), min(start + length, stop)
            day += 1


def _offsets(zone: ZoneInfo, now: int) -> Iterator[tuple[int, int, int]]:
    """Yield (begin, end, seconds east of UTC) for the times around ``now``."""
    begin = at = now - _LOOK_BACK
    offset = _offset(zone, at)
    while at < now + _LOOK_AHEAD:
        later = at + _PROBE
        if _offset(zone, later) != offset:
            low, high = at, later
            while high - low > 1:
                middle = (low + high) // 2
                if _offset(zone, middle) == offset:
                    low = middle
                else:
                    high = middle
            yield begin, high, offset
            begin, offset = high, _offset(zone, high)
        at = later
    yield begin, at, offset


def _offset(zone: ZoneInfo, at: int) -> int:
    east = datetime.fromtimestamp(at, UTC).astimezone(zone).utcoffset()
    return 0 if east is None else int(east.total_seconds())


class Places:
    """The site tree, resolved: for every path its building and its window.

    Args:
        sites: nodes in any order; parents need not be listed.
        zone, window: for beacons whose path says nothing.
        stored: they were accepted before: a zone that is not known here is kept (``NEVER``).

    Raises:
        InputError: ``site_path``, ``site_kind``, and those of :func:`parse_window`.
    """

    def __init__(
        self,
        sites: Iterable[Site] = (),
        *,
        zone: str = "UTC",
        window: str = "03:00-05:00",
        stored: bool = False,
    ):
        self._stored = stored
        self._known = {}
        for site in sites:
            check_path(site.path)
            if site.kind not in (None, "site", "building", "floor"):
                raise InputError("site_kind", "unknown kind of site", found=_shown(site.kind))
            self._known[site.path] = site
        self._default = parse_window(window, zone)
        self._resolved = {path: self._resolve(path) for path in self._known}

    @property
    def paths(self) -> frozenset[str]:
        """All paths of the tree, inner nodes included."""
        return frozenset(part for path in self._known for part in ancestors(path))

    def place_of(self, path: str) -> Place:
        """Return the place of a path, which need not be in the tree itself."""
        place = self._resolved.get(path)
        if place is None:
            place = self._resolve(path)
            if len(self._resolved) < len(self._known) + _MEMO_MAX:
                self._resolved[path] = place
        return place

    def _resolve(self, path: str) -> Place:
        window = self._default
        hours = zone = None
        building = path.partition("/")[0]
        declared = False
        for depth, part in enumerate(ancestors(path), 1):
            site = self._known.get(part) or Site(part)
            if site.kind == "building" or (site.kind is None and depth == 2 and not declared):
                building, declared = part, site.kind is not None
            hours = hours if site.window is None else site.window
            zone = zone if site.zone is None else site.zone
        if hours is not None:
            window = parse_window(hours, window.zone)
        if zone is not None:
            if not self._stored:
                load_zone(zone)
            window = replace(window, zone=zone)
        return Place(building, window)


@lru_cache(maxsize=4096)
def ancestors(path: str) -> tuple[str, ...]:
    """Return the path's own ancestors from the top, itself last; none for an empty path."""
    if not path:
        return ()
    parts = path.split("/")
    return tuple("/".join(parts[: depth + 1]) for depth in range(len(parts)))


def check_path(path: object) -> str:
    """Return a site path if it is one: ``campus/building-a/floor-2``.

    Raises:
        InputError: ``site_path``.
    """
    if isinstance(path, str) and 0 < len(path) <= SITE_PATH_MAX:
        parts = path.split("/")
        if len(parts) <= SITE_DEPTH_MAX and all(_SEGMENT.fullmatch(part) for part in parts):
            return path
    raise InputError(
        "site_path",
        "a site path is names joined by slashes",
        found=_shown(path),
        expected="campus/building-a/floor-2",
    )


def _shown(value: object) -> str:
    return str(value)[:SITE_PATH_MAX]
