"""Hands events, stored and transient, to the subscribers of the live streams."""

import asyncio
from collections import Counter
from collections.abc import Callable

from beacon_ota.errors import ReachError
from beacon_ota.orchestrator.db.tables import Fields
from beacon_ota.orchestrator.limits import LIMITS


class EventHub:
    """Followers, each with a bounded queue; a follower that lags too far must begin again."""

    def __init__(self) -> None:
        # The token of each follower; the oldest follower first.
        self._followers: dict[asyncio.Queue[Fields | None], str] = {}
        self.on_stored: Callable[[], object] = lambda: None  # an event was stored
        self._tell: Callable[[Fields], object] | None = None

    def check_capacity(self, token_id: str = "") -> None:
        """Refuse a follower beyond the limits.

        Raises:
            ReachError: ``followers_of_token``, ``followers``.
        """
        if self._of(token_id) >= LIMITS.subscribers_per_token:
            raise ReachError(
                "followers_of_token",
                "this token follows the events too often already",
                expected=LIMITS.subscribers_per_token,
            )
        if len(self._followers) >= LIMITS.subscribers and self._crowding(token_id) is None:
            raise ReachError("followers", "too many follow the events already")

    def subscribe(self, token_id: str = "") -> "asyncio.Queue[Fields | None] | None":
        """Return a queue of events from now on; None in it: events were lost, or the stream ends.

        When all places are taken, a token with several followers loses one of them to a token
        with fewer. Return None when no place is left, or the token has its maximum.
        """
        if self._of(token_id) >= LIMITS.subscribers_per_token:
            return None
        if len(self._followers) >= LIMITS.subscribers:
            displaced = self._crowding(token_id)
            if displaced is None:
                return None
            self._end(displaced)
        queue: asyncio.Queue[Fields | None] = asyncio.Queue(LIMITS.subscriber_events)
        self._followers[queue] = token_id
        return queue

    def _of(self, token_id: str) -> int:
        return sum(one == token_id for one in self._followers.values())

    def _crowding(self, token_id: str) -> "asyncio.Queue[Fields | None] | None":
        """Return the oldest follower of the token with the most, if two more than this one's."""
        counts = Counter(self._followers.values())
        most, count = counts.most_common(1)[0]
        if count < counts[token_id] + 2:
            return None
        return next(queue for queue, one in self._followers.items() if one == most)

    def _end(self, queue: "asyncio.Queue[Fields | None]") -> None:
        self._followers.pop(queue, None)
        if queue.full():
            queue.get_nowait()
        queue.put_nowait(None)

    def unsubscribe(self, queue: "asyncio.Queue[Fields | None]") -> None:
        """Stop following."""
        self._followers.pop(queue, None)

    @property
    def has_subscribers(self) -> bool:
        """Tell whether anybody follows."""
        return bool(self._followers)

    def forward_to(self, tell: Callable[[Fields], object]) -> None:
        """Forward transient (unstored) events to the other processes through ``tell``.

        Stored events come back, in one order for all, through :meth:`dispatch`.
        """
        self._tell = tell

    def publish(self, event: Fields) -> None:
        """Hand a committed event to all followers."""
        if self._tell is None:
            self.dispatch(event)

    def dispatch(self, event: Fields) -> None:
        """Hand an event to the followers."""
        if event["id"] is not None:
            self.on_stored()
        for queue in tuple(self._followers):
            if queue.full():
                self._end(queue)
            else:
                queue.put_nowait(event)

    def broadcast_transient(self, at: float, kind: str, subject: str, data: Fields) -> None:
        """Hand on a transient event (progress), which is not stored and has no id."""
        if not self._followers and self._tell is None:
            return
        event = {"id": None, "at": at, "kind": kind, "subject": subject, "data": data}
        self.dispatch(event)
        if self._tell is not None:
            self._tell(event)

    def close(self) -> None:
        """End every follower's stream."""
        for queue in tuple(self._followers):
            self._end(queue)
