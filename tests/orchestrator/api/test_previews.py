"""A preview ends with its client, with the server, or after a while; nobody else waits for it."""

import http.client
import json
import time
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from beacon_ota.errors import BeaconOtaError
from beacon_ota.orchestrator.api import previews, rollouts
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.rollout.types import Timeline
from tests.orchestrator.world import until, upload


class Slow:
    """Stands in for the computing of a large fleet's preview: it goes on until it is stopped."""

    def __init__(self):
        self.begun = self.ended = 0
        self.most = 0

    def __call__(self, *_args, stop, **_more):
        self.begun += 1
        self.most = max(self.most, self.begun - self.ended)
        while not stop():
            time.sleep(0.005)
        self.ended += 1
        return Timeline((), (), None)


@pytest.fixture
def slow(monkeypatch):
    computing = Slow()
    monkeypatch.setattr(rollouts, "simulate_rollout", computing)
    return computing


@pytest.fixture
def release(local, tmp_path):
    return upload(local.admin(), "1.1.0", tmp_path, channel="stable")["firmware_id"]


def ask(local, release) -> http.client.HTTPConnection:
    """Ask for a preview; the answer is not waited for."""
    parts = urlsplit(local.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    body = json.dumps({"firmware_id": release})
    headers = {"Authorization": f"Bearer {local.token}", "Content-Type": "application/json"}
    connection.request("POST", "/api/rollouts/plan", body, headers)
    return connection


def test_a_preview_ends_with_its_client(local, release, slow):
    connection = ask(local, release)
    until(lambda: slow.begun == 1)
    connection.close()
    until(lambda: slow.ended == 1)


def test_one_that_waits_for_its_turn_is_never_begun_when_its_client_leaves(local, release, slow):
    first = ask(local, release)
    until(lambda: slow.begun == 1)
    second = ask(local, release)
    second.close()
    first.close()
    third = ask(local, release)
    until(lambda: slow.ended >= 1 and slow.begun > slow.ended)
    third.close()
    until(lambda: slow.ended == slow.begun)
    assert slow.most == 1


def test_too_many_are_refused_by_name_and_others_are_served(local, release, slow, monkeypatch):
    (beacon,) = local.beacons(1)
    waiting = [ask(local, release) for _ in range(LIMITS.previews)]
    until(lambda: slow.begun == 1)

    def refused():
        """Ask once more: one that was in before the others waits as they do."""
        waiting.append(ask(local, release))
        waiting[-1].sock.settimeout(1)
        try:
            return json.loads(waiting[-1].getresponse().read())["code"] == "previews_busy"
        except TimeoutError:
            return False

    assert until(refused)
    assert beacon.poll().status == 204
    upload(local.admin(), "1.2.0", local.service.settings.data)
    for connection in waiting:
        connection.close()
    until(lambda: slow.ended == slow.begun)
    monkeypatch.undo()

    def answered():
        try:
            return local.admin().plan_rollout(release)["beacons"]
        except BeaconOtaError as error:
            assert error.code == "previews_busy"  # until all of them are seen to have left
            return None

    assert until(answered)


def test_a_preview_that_takes_too_long_is_refused_by_name(local, release, slow, monkeypatch):
    monkeypatch.setattr(previews, "LIMITS", replace(LIMITS, preview_s=0.05))
    with pytest.raises(BeaconOtaError) as caught:
        local.admin().plan_rollout(release)
    assert caught.value.code == "preview_too_long"


def test_the_server_stops_while_one_is_computed(local, release, slow):
    connection = ask(local, release)
    until(lambda: slow.begun == 1)
    local.stop()
    assert slow.ended == 1
    assert json.loads(connection.getresponse().read())["code"] == "stopping"
