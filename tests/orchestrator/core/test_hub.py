"""Followers: their places, their queues, their end."""

import asyncio

import pytest

from beacon_ota.errors import ReachError
from beacon_ota.orchestrator.core.hub import EventHub
from beacon_ota.orchestrator.http.problems import headers_of, status_of
from beacon_ota.orchestrator.limits import LIMITS


def follow(hub: EventHub, token_id: str) -> "asyncio.Queue":
    queue = hub.subscribe(token_id)
    assert queue is not None
    return queue


def event(number: int) -> dict:
    return {"id": number, "at": 0.0, "kind": "k", "subject": "s", "data": {}}


def test_a_share_for_each_token():
    hub = EventHub()
    mine = [follow(hub, "a") for _ in range(LIMITS.subscribers_per_token)]
    assert hub.subscribe("a") is None
    with pytest.raises(ReachError) as caught:
        hub.check_capacity("a")
    assert caught.value.code == "followers_of_token" and status_of(caught.value) == 429
    assert headers_of(caught.value) == {"retry-after": "10"}
    hub.unsubscribe(mine[0])
    hub.check_capacity("a")
    assert hub.subscribe("a") is not None


def test_when_all_places_are_taken_the_most_give_one_to_the_fewest():
    hub = EventHub()
    tokens = LIMITS.subscribers // LIMITS.subscribers_per_token
    taken = {
        n: [follow(hub, f"t{n}") for _ in range(LIMITS.subscribers_per_token)]
        for n in range(tokens)
    }
    hub.check_capacity("new")
    newcomer = follow(hub, "new")
    ended = [queue for many in taken.values() for queue in many if not queue.empty()]
    assert len(ended) == 1 and ended[0].get_nowait() is None
    hub.dispatch(event(1))
    assert newcomer.get_nowait()["id"] == 1 and ended[0].empty()


def test_places_that_are_shared_out_stay_so():
    hub = EventHub()
    for number in range(LIMITS.subscribers):
        follow(hub, f"t{number}")
    with pytest.raises(ReachError) as caught:
        hub.check_capacity("one more")
    assert caught.value.code == "followers" and status_of(caught.value) == 503
    assert hub.subscribe("one more") is None


def test_who_lags_begins_again():
    hub = EventHub()
    queue = follow(hub, "a")
    for number in range(LIMITS.subscriber_events + 5):
        hub.dispatch(event(number))
    found = [queue.get_nowait() for _ in range(queue.qsize())]
    assert found[-1] is None and len(found) == LIMITS.subscriber_events
    assert not hub.has_subscribers
    other = follow(hub, "a")
    hub.close()
    assert other.get_nowait() is None and not hub.has_subscribers
