"""The fleet's state in memory, for decisions: read at the start, then follows the commits.

Other modules call it the *view*. A variable ``node`` is a :class:`BeaconState`, ``facts`` the
:class:`Beacon` in it that decisions see, ``entry`` a :class:`RolloutEntry`, and ``lives`` are
``ActiveRollout``: what ``decide`` needs of the rollouts that may offer something.

The view is a copy of the database. Every ``put_…`` takes what was committed, in that order, and
only the event loop's thread calls them. Stops that are not committed yet (``stops``) are applied
on top, whatever is read again.
"""

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace

from beacon_ota.orchestrator.core.contacts import ContactLog
from beacon_ota.orchestrator.core.fleet_records import BeaconState, Release, RolloutEntry
from beacon_ota.orchestrator.core.replay import ReplayGuard
from beacon_ota.orchestrator.core.stop_board import Stops, stops_of_rollout
from beacon_ota.orchestrator.db.guard import keep_from_writer
from beacon_ota.orchestrator.db.tables import Fields, keys
from beacon_ota.orchestrator.db.tables.rollouts import Basis
from beacon_ota.orchestrator.rollout import decide
from beacon_ota.orchestrator.rollout.rules import Rollout
from beacon_ota.orchestrator.rollout.stopping import apply_stops
from beacon_ota.orchestrator.rollout.types import (
    Attempt,
    Beacon,
    Place,
    Result,
    RolloutState,
    Site,
    Status,
    Transition,
)
from beacon_ota.orchestrator.rollout.windows import Places, is_known_zone

log = logging.getLogger("beacon_ota.orchestrator")

_PLACES_MAX = 4096  # sites and tags whose rollouts are remembered


class FleetState:
    """The fleet as the last commit left it."""

    def __init__(
        self,
        replays: ReplayGuard,
        *,
        zone: str = "UTC",
        window: str = "03:00-05:00",
    ):
        self._replays = replays
        self._zone, self._window = zone, window
        self.beacons: dict[str, BeaconState] = {}
        self.releases: dict[str, Release] = {}
        self.rollouts: dict[str, RolloutEntry] = {}
        self.open_attempts: dict[str, Attempt] = {}
        self.places = Places(zone=zone, window=window)
        self.on_change: Callable[[], object] = lambda: None  # an attempt came to its end, or has to
        self.contacts = ContactLog(self.beacons)
        self.stops: Stops = {}  # not stored yet; they hold over whatever is read
        self._lives: dict[str, list[decide.ActiveRollout]] = {}
        self._lives_by_place: dict[tuple[str, str, frozenset[str]], list[decide.ActiveRollout]] = {}
        self._busy: dict[str, int] = {}
        self._where: dict[str, str] = {}  # open attempt -> the building it counts in
        self._left: dict[str, list[Attempt]] = {}  # of beacons that are not registered, by id

    # ---- beacons ----

    def put_beacon(self, row: Fields) -> BeaconState:
        """Take a beacon's row, new or changed."""
        known = self.beacons.get(row["id"])
        facts = Beacon(
            id=row["id"],
            device_type=row["device_type"],
            version=row["version"] or "",
            image=row["image"] or "",
            version_at=row["last_seen"] or 0.0,
            channel=row["channel"],
            site=row["site"] or "",
            tags=frozenset(json.loads(row["tags"])),
            on_trial=row["state"] == "trial",
            quarantined=row["quarantined_at"] is not None,
            cleared_at=row["cleared_at"],
            said_type=row["said_type"] or "",
        )
        if known is None:
            node = BeaconState(
                facts,
                row["key"],
                row["next_key"],
                keys.split_keys(row["given_keys"]),
                self._replays.slot_for(row["id"]),
                row["last_seen"],
                refused_code=row["refused_code"],
                refused_at=row["refused_at"],
                refusals=row["refusals"] or 0,
            )
            node.attempts = self._left.pop(row["id"], [])  # a removed beacon was registered again
            self.beacons[row["id"]] = node
            for attempt in node.attempts:
                if attempt.result is None:
                    self._occupy(attempt, node)
            return node
        if known.last_seen is None or known.last_seen <= (row["last_seen"] or 0.0):
            known.last_seen = row["last_seen"]
        else:
            facts = replace(  # the row is older than the last poll
                facts,
                version=known.beacon.version,
                image=known.beacon.image,
                version_at=known.beacon.version_at,
                on_trial=known.beacon.on_trial,
                said_type=known.beacon.said_type,
            )
        if (row["refused_at"] or 0.0) >= (known.refused_at or 0.0):  # by another process
            known.refused_code, known.refused_at = row["refused_code"], row["refused_at"]
            known.refusals = row["refusals"] or 0
        retyped = facts.device_type != known.beacon.device_type
        moved = facts.open_channel != known.beacon.open_channel
        known.beacon, known.key, known.next_key = facts, row["key"], row["next_key"]
        known.given_keys = keys.split_keys(row["given_keys"])
        known.query = b""
        if retyped or (moved and any(attempt.result is None for attempt in known.attempts)):
            self.on_change()  # what it has begun, or as another board, may be called off
        return known

    def drop_beacon(self, beacon_id: str) -> None:
        """Forget a beacon."""
        node = self.beacons.pop(beacon_id, None)
        self.contacts.forget_beacon(beacon_id)
        if node is None or not node.attempts:
            return
        self._left[beacon_id] = node.attempts
        for attempt in node.attempts:
            self._vacate(attempt.id)  # it no longer counts in its building
        self.on_change()

    # ---- places ----

    def put_sites(self, rows: Iterable[Fields]) -> None:
        """Take the whole site tree."""
        sites = [Site(r["path"], zone=r["tz"], window=r["window"], kind=r["kind"]) for r in rows]
        for zone in sorted(
            {site.zone for site in sites if site.zone and not is_known_zone(site.zone)}
        ):
            log.error("no file here says what time it is in %s: its windows do not open", zone)
        self.places = Places(sites, zone=self._zone, window=self._window, stored=True)

    def place_of(self, node: BeaconState) -> Place:
        """Return where a beacon is: its building and window."""
        return self.places.place_of(node.beacon.site)

    def updates_in_building(self, building: str, node: BeaconState) -> int:
        """Return how many attempts are under way in a building, the beacon's own not counted."""
        count = self._busy.get(building, 0)
        if count:
            count -= sum(self._where.get(attempt.id) == building for attempt in node.attempts)
        return count

    # ---- releases ----

    def put_release(self, row: Fields) -> None:
        """Take a release's row, new or changed."""
        manifest = row["manifest"]
        static = {
            "firmware_id": row["id"],
            "version": row["version"],
            "checksum": row["checksum"],
            "size": row["size"],
            "description": row["description"],
            "manifest": None if manifest is None else json.loads(manifest),
        }
        text = json.dumps(static, separators=(",", ":"), ensure_ascii=False)
        self.releases[row["id"]] = Release(row, text[1:-1])
        self._forget_lives()

    # ---- rollouts and attempts ----

    def put_rollout(
        self, rollout: Rollout, state: RolloutState, revision: int, created_at: float
    ) -> RolloutEntry:
        """Take a rollout, new or moved on."""
        key = rollout.plan.rollout_id
        entry = self.rollouts.get(key)
        holds = apply_stops(state, self.stops_of(key))
        if entry is None:
            entry = self.rollouts[key] = RolloutEntry(rollout, holds, state, revision, created_at)
        else:
            entry.state, entry.stored, entry.revision = holds, state, revision
        self._forget_lives()
        return entry

    def put_stops(self, stops: Stops) -> None:
        """Take all stops that are not stored yet."""
        self.stops = stops
        for key, entry in self.rollouts.items():
            entry.state = apply_stops(entry.stored, self.stops_of(key))
        self._forget_lives()
        self.on_change()

    def stops_of(self, rollout_id: str) -> tuple[Transition, ...]:
        """Return the stops of a rollout that are not stored yet."""
        return stops_of_rollout(self.stops, rollout_id)

    def is_called_off(self, rollout_id: str, firmware_id: str) -> bool:
        """Tell whether a stop, stored or not, calls off attempts that are not rebooting yet."""
        entry = self.rollouts.get(rollout_id)
        return (
            entry is None
            or entry.state.status in (Status.HALTED, Status.ABORTED)
            or self.releases[firmware_id].state == "deprecated"
        )

    def is_stopped(self, attempt: Attempt) -> bool:
        """Tell whether an attempt may not go on for a stop that is not stored yet."""
        if not self.stops_of(attempt.rollout_id):
            return False
        entry = self.rollouts.get(attempt.rollout_id)
        release = self.releases[attempt.firmware_id]
        return entry is None or not decide.may_continue(entry.state.status, release.state, attempt)

    def basis_of(self, entry: RolloutEntry) -> Basis:
        """Return the facts on which a decision about a rollout rests now."""
        release = self.releases[entry.rollout.plan.release.firmware_id]
        return Basis(entry.revision, entry.state.status.value, release.state)

    def retire_rollout(self, rollout_id: str) -> None:
        """Make a rollout offer nothing any more; it is dropped once it has no open attempts."""
        entry = self.rollouts.get(rollout_id)
        if entry is not None:
            entry.retired = True
            self._forget_lives()
            if not entry.open_ids:
                self.drop_rollout(rollout_id)

    def active_rollouts_for(self, facts: Beacon) -> list[decide.ActiveRollout]:
        """Return the rollouts that select a beacon, newest first.

        A fleet often has one rollout per building, and few of them select a given beacon. So a poll
        reads a cached list of those few.
        """
        key = (facts.device_type, facts.site, facts.tags)
        lives = self._lives_by_place.get(key)
        if lives is None:
            if len(self._lives_by_place) >= _PLACES_MAX:
                self._lives_by_place.clear()
            lives = self._lives_by_place[key] = [
                live
                for live in self.active_rollouts(facts.device_type)
                if live.rollout.wave_of(facts) is not None
            ]
        return lives

    def _forget_lives(self) -> None:
        self._lives.clear()
        self._lives_by_place.clear()

    def active_rollouts(self, device_type: str) -> list[decide.ActiveRollout]:
        """Return the rollouts for a device type, newest first."""
        lives = self._lives.get(device_type)
        if lives is None:
            lives = self._lives[device_type] = self.build_active_rollouts(device_type)
        return lives

    def build_active_rollouts(self, device_type: str) -> list[decide.ActiveRollout]:
        """Build the list without the cache; from any thread."""
        entries = [
            entry
            for entry in self.rollouts.copy().values()
            if entry.rollout.plan.release.device_type == device_type
        ]
        entries.sort(key=lambda entry: entry.created_at, reverse=True)
        return [
            decide.ActiveRollout(
                entry.rollout,
                entry.state,
                self.releases[entry.rollout.plan.release.firmware_id].state,
            )
            for entry in entries
            if entry.state.status is not Status.ABORTED and not entry.retired
        ]

    def drop_rollout(self, rollout_id: str) -> None:
        """Drop a rollout that offers nothing any more."""
        entry = self.rollouts.pop(rollout_id, None)
        if entry is None:
            return  # somebody else has, between two looks
        firmware_id = entry.rollout.plan.release.firmware_id
        if not self.has_rollout_of(firmware_id):
            for attempt in entry.attempts.values():
                node = self.beacons.get(attempt.beacon_id)
                if node is not None:
                    node.attempts = [a for a in node.attempts if a.firmware_id != firmware_id]
            self._left = {
                beacon_id: others
                for beacon_id, left in self._left.items()
                if (others := [a for a in left if a.firmware_id != firmware_id])
            }
        self._forget_lives()

    def drop_rollouts(self) -> list[Attempt]:
        """Drop all rollouts and attempts, to read them again.

        Returns:
            The offers that are being committed: the rows that are read may lack them.
        """
        unwritten = [
            attempt
            for node in self.beacons.values()
            if node.offering is not None
            for attempt in node.attempts
            if attempt.id in self.open_attempts
        ]
        for node in self.beacons.values():
            node.attempts = []
        for held in (self.rollouts, self.open_attempts, self._where, self._busy, self._left):
            held.clear()
        self._forget_lives()
        return unwritten

    def has_rollout_of(self, firmware_id: str) -> bool:
        """Tell whether a rollout in memory is of this release."""
        return any(
            entry.rollout.plan.release.firmware_id == firmware_id
            for entry in self.rollouts.values()
        )

    def put_attempt(self, attempt: Attempt) -> None:
        """Take an attempt, new or changed. A settled one opens again only if it had expired.

        Such an attempt was offered again at another time, by a clock that may have been set back.
        """
        entry = self.rollouts.get(attempt.rollout_id)
        if entry is not None:
            known = entry.attempts.get(attempt.id)
            if known is not None and known.result is not None and attempt.result is None:
                renewed = known.result is Result.EXPIRED and attempt.offered_at != known.offered_at
                if not renewed:
                    return
            entry.attempts[attempt.id] = attempt
            if attempt.result is None:
                entry.open_ids.add(attempt.id)
            elif attempt.id in entry.open_ids:
                entry.open_ids.discard(attempt.id)
                self.on_change()
        node = self.beacons.get(attempt.beacon_id)
        if entry is not None or self.has_rollout_of(attempt.firmware_id):
            if node is not None:
                mine = node.attempts
            else:
                mine = self._left.setdefault(attempt.beacon_id, [])
            for index, other in enumerate(mine):
                if other.id == attempt.id:
                    mine[index] = attempt
                    break
            else:
                mine.append(attempt)
        if attempt.result is None:
            self.open_attempts[attempt.id] = attempt
            if node is not None:
                self._occupy(attempt, node)
        else:
            self.close_attempt(attempt.id)

    def _occupy(self, attempt: Attempt, node: BeaconState) -> None:
        """Count an attempt that is under way in its beacon's building."""
        if attempt.id not in self._where:
            building = self.place_of(node).building
            self._where[attempt.id] = building
            self._busy[building] = self._busy.get(building, 0) + 1

    def _vacate(self, attempt_id: str) -> None:
        building = self._where.pop(attempt_id, None)
        if building is not None:
            self._busy[building] -= 1

    def close_attempt(self, attempt_id: str) -> None:
        """Note that an attempt is not under way any more."""
        self.open_attempts.pop(attempt_id, None)
        self._vacate(attempt_id)

    def cancel_attempt(self, attempt: Attempt) -> None:
        """Remove an offer that could not be committed, as if it had never been made."""
        self.close_attempt(attempt.id)
        if (entry := self.rollouts.get(attempt.rollout_id)) is not None:
            entry.attempts.pop(attempt.id, None)
            entry.open_ids.discard(attempt.id)
        if (node := self.beacons.get(attempt.beacon_id)) is not None:
            node.attempts = [other for other in node.attempts if other.id != attempt.id]
        elif (left := self._left.get(attempt.beacon_id)) is not None:
            left[:] = [other for other in left if other.id != attempt.id]


keep_from_writer(FleetState)
