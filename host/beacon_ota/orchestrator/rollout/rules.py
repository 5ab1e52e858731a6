"""A compiled plan: all that is needed to answer a poll quickly."""

import hashlib
import math
from fractions import Fraction
from functools import lru_cache

from beacon_ota.errors import InputError
from beacon_ota.wire import versions

from .plan_types import Gate, Plan, Selector, Stage
from .types import Beacon, Decision, Reason, Window
from .windows import ancestors, parse_window

_WHOLE = 2**64
_MEMO_MAX = 4096


def bucket_of(rollout_id: str, beacon_id: str) -> float:
    """Return where a beacon stands in a rollout, in [0, 1): fixed, and different per rollout."""
    return (_draw(_seed(rollout_id), beacon_id) >> 11) / 2**53


def stage_of(ladder: tuple[Stage, ...], share: float) -> int:
    """Return the stage that a bucket falls in: the first whose cumulative share is above it."""
    return next(n for n, stage in enumerate(ladder) if share < stage.share)


@lru_cache(maxsize=4096)
def version_key(version: str) -> tuple | None:
    """Return the sort key of a version, None for what is not semver."""
    try:
        return versions.parse(version)
    except ValueError:
        return None


def _seed(rollout_id: str):
    return hashlib.sha256(f"{rollout_id}\n".encode())


# The buckets are compared as whole numbers: as floats the highest would round up to 1.0, and its
# beacon would never be served.
def _draw(seed, beacon_id: str) -> int:
    digest = seed.copy()
    digest.update(beacon_id.encode())
    return int.from_bytes(digest.digest()[:8], "big")


class Rollout:
    """A plan made ready to be asked.

    Attributes:
        plan: the plan itself.
        order: sort key of the release's version.
        ladders, gates: per wave, the plan's or the wave's own.
        up_to_date: the answer to every beacon that needs nothing; most polls end with it.

    Raises:
        InputError: ``version_syntax``; ``window_syntax`` and ``window_empty`` for the plan's own.
    """

    def __init__(self, plan: Plan):
        self.plan = plan
        key = version_key(plan.release.version)
        if key is None:
            raise InputError(
                "version_syntax",
                "the release's version is not semver",
                found=plan.release.version,
                expected="1.2.3 or 1.2.3-label",
            )
        self.version_key = key
        self.ladders = tuple(wave.ladder or plan.ladder for wave in plan.waves)
        self.gates: tuple[Gate, ...] = tuple(wave.gate or plan.gate for wave in plan.waves)
        self.up_to_date = Decision(Reason.UP_TO_DATE, plan.rollout_id, plan.release.firmware_id)
        self._limits = tuple(
            tuple(math.ceil(Fraction(stage.share) * _WHOLE) for stage in ladder)
            for ladder in self.ladders
        )
        self._seed = _seed(plan.rollout_id)
        self._hours = None if plan.window is None else parse_window(plan.window)
        self._windows: dict[Window, Window] = {}
        self._waves: dict[tuple[str, frozenset[str]], int | None] = {}

    def targets(self, beacon: Beacon) -> bool:
        """True for a beacon that the release is meant for and that does not run it yet.

        One that has never been heard from is taken for such: a stage is not empty because its
        beacons have yet to say what they run.
        """
        release = self.plan.release
        if (
            beacon.device_type != release.device_type
            or beacon.questioned
            or beacon.quarantined
            or beacon.image == release.checksum
        ):
            return False
        running = version_key(beacon.version)
        return not beacon.version if running is None else running < self.version_key

    def wave_of(self, beacon: Beacon) -> int | None:
        """Return the index of the beacon's wave, None when no wave selects it."""
        key = (beacon.site, beacon.tags)
        try:
            return self._waves[key]
        except KeyError:
            pass
        if len(self._waves) >= _MEMO_MAX:
            self._waves.clear()
        wave = self._waves[key] = self._select(beacon)
        return wave

    def stage_of(self, beacon_id: str, wave: int) -> int:
        """Return the stage of a wave that a beacon falls in."""
        drawn = _draw(self._seed, beacon_id)
        for stage, limit in enumerate(self._limits[wave]):
            if drawn < limit:
                return stage
        raise InputError("ladder_not_whole", "a ladder ends at share 1.0")

    def window_in(self, own: Window) -> Window:
        """Return the window in force in a place: the plan's hours, or the place's own."""
        if self._hours is None:
            return own
        window = self._windows.get(own)
        if window is None:
            if len(self._windows) >= _MEMO_MAX:
                self._windows.clear()
            window = Window(self._hours.start, self._hours.end, own.zone)
            self._windows[own] = window
        return window

    def _select(self, beacon: Beacon) -> int | None:
        rest = None
        for index, wave in enumerate(self.plan.waves):
            if wave.selector.rest:
                rest = index
            elif selector_matches(wave.selector, beacon.site, beacon.tags):
                return index
        return rest


def plan_covers(newer: Plan, older: Plan) -> bool:
    """True when every beacon that an older rollout is for is for a newer one to decide about."""
    if newer.release.device_type != older.release.device_type:
        return False
    before, after = version_key(older.release.version), version_key(newer.release.version)
    if before is None or after is None or after < before or (older.required > newer.required):
        return False
    wide = [wave.selector for wave in newer.waves]
    if any(selector.rest for selector in wide):
        return True
    return all(any(_includes(selector, wave.selector) for selector in wide) for wave in older.waves)


def _includes(wide: Selector, narrow: Selector) -> bool:
    """True when one selector takes all that another one takes."""
    return (
        not narrow.rest
        and (
            not wide.sites
            or bool(narrow.sites)
            and all(any(up in wide.sites for up in ancestors(path)) for path in narrow.sites)
        )
        and set(narrow.tags).issuperset(wide.tags)
        and set(narrow.without).issuperset(wide.without)
    )


def selector_matches(selector: Selector, site: str, tags: frozenset[str]) -> bool:
    """True when a beacon at this path with these tags is selected by name (``rest`` is not)."""
    return (
        (not selector.sites or any(path in selector.sites for path in ancestors(site)))
        and tags.issuperset(selector.tags)
        and tags.isdisjoint(selector.without)
    )
