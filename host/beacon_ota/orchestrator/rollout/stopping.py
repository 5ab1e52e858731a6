"""Applies stops to the committed state of a rollout: pure functions."""

from collections.abc import Iterable

from .advance import apply_transition
from .types import Kind, RolloutState, Status, Transition

# By what it does to beacons: who has one of these needs no weaker one.
_STRENGTH = {Kind.PAUSED: 1, Kind.HALTED: 2, Kind.ABORTED: 3}
_STANDS = {Status.PAUSED: 1, Status.HALTED: 2, Status.ABORTED: 3}
STOPS = frozenset(_STRENGTH)


def is_stopped_by(state: RolloutState, change: Transition) -> bool:
    """Tell whether a rollout is stopped already, at least as much as a stop wants."""
    return _STANDS.get(state.status, 0) >= _STRENGTH[change.kind]


def missing_stops(state: RolloutState, stops: Iterable[Transition]) -> tuple[Transition, ...]:
    """Return those stops, in order, that a state does not hold yet."""
    made = []
    for change in stops:
        if not is_stopped_by(state, change):
            state = apply_transition(state, change)
            made.append(change)
    return tuple(made)


def apply_stops(state: RolloutState, stops: Iterable[Transition]) -> RolloutState:
    """Return a state with stops applied to it."""
    for change in missing_stops(state, stops):
        state = apply_transition(state, change)
    return state
