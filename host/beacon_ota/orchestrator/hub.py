"""Hands events to those who follow them live."""

import asyncio
from collections.abc import Callable

from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.problems import Problem
from beacon_ota.orchestrator.store import Fields

_QUEUE = 1000  # events that a slow follower may lag behind


class Hub:
    """Followers, each with a bounded queue; whoever lags too far is told to begin again."""

    def __init__(self) -> None:
        self._followers: set[asyncio.Queue[Fields | None]] = set()
        self.on_stored: Callable[[], object] = lambda: None  # there is one more to resume from
        self._tell: Callable[[Fields], object] | None = None

    def check_room(self) -> None:
        """Refuse one follower too many (Problem ``followers``)."""
        if len(self._followers) >= LIMITS.subscribers:
            raise Problem(503, "followers", "too many follow the events already")

    def follow(self) -> "asyncio.Queue[Fields | None]":
        """Return a queue of events from now on; None in it means: you lost some, or it is over."""
        queue: asyncio.Queue[Fields | None] = asyncio.Queue(_QUEUE)
        self._followers.add(queue)
        return queue

    def leave(self, queue: "asyncio.Queue[Fields | None]") -> None:
        """Stop following."""
        self._followers.discard(queue)

    @property
    def followed(self) -> bool:
        """Tell whether anybody follows."""
        return bool(self._followers)

    def hand_on(self, tell: Callable[[Fields], object]) -> None:
        """There are other processes: ``tell`` them of the moment.

        Stored events come back, with theirs, through :meth:`deliver`: in one order for all.
        """
        self._tell = tell

    def publish(self, event: Fields) -> None:
        """Hand an event that was committed to everybody."""
        if self._tell is None:
            self.deliver(event)

    def deliver(self, event: Fields) -> None:
        """Hand an event to the followers."""
        if event["id"] is not None:
            self.on_stored()
        for queue in tuple(self._followers):
            if queue.full():
                self._followers.discard(queue)
                queue.get_nowait()
                queue.put_nowait(None)
            else:
                queue.put_nowait(event)

    def tell(self, at: float, kind: str, subject: str, data: Fields) -> None:
        """Hand on something of the moment (progress): not stored, so without an id."""
        if not self._followers and self._tell is None:
            return
        event = {"id": None, "at": at, "kind": kind, "subject": subject, "data": data}
        self.deliver(event)
        if self._tell is not None:
            self._tell(event)

    def close(self) -> None:
        """End every follower's stream."""
        for queue in self._followers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(None)
        self._followers.clear()
