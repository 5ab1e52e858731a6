"""What stops a rollout, applied over what is committed of it: pure functions."""

from collections.abc import Iterable

from .advance import apply
from .types import Kind, RolloutState, Status, Transition

# By what it does to beacons: who has one of these needs no weaker one.
_STRENGTH = {Kind.PAUSED: 1, Kind.HALTED: 2, Kind.ABORTED: 3}
_STANDS = {Status.PAUSED: 1, Status.HALTED: 2, Status.ABORTED: 3}
STOPS = frozenset(_STRENGTH)


def is_kept(state: RolloutState, change: Transition) -> bool:
    """Tell whether a rollout is stopped already, at least as much as a stop wants."""
    return _STANDS.get(state.status, 0) >= _STRENGTH[change.kind]


def due(state: RolloutState, stops: Iterable[Transition]) -> tuple[Transition, ...]:
    """Return those stops, in order, that a state does not hold yet."""
    made = []
    for change in stops:
        if not is_kept(state, change):
            state = apply(state, change)
            made.append(change)
    return tuple(made)


def stopped(state: RolloutState, stops: Iterable[Transition]) -> RolloutState:
    """Return a state with stops applied to it."""
    for change in due(state, stops):
        state = apply(state, change)
    return state
