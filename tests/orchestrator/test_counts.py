"""Counts that are exact however many report at once, and through kills."""

import http.client
import random
import threading
import time

import uvloop

from beacon_ota.errors import BeaconOtaError
from tests.bench.ours import Ours, update
from tests.bench.subject import Watched
from tests.orchestrator.world import Server, TestBeacon, beacons, until, upload

EVERYBODY = {"preset": "all-at-once", "window": "00:00-24:00"}


def test_500_updates_with_every_report_sent_twice_at_once(tmp_path):
    with Server(tmp_path / "data") as server:
        fleet = beacons(server, 500)
        firmware = upload(server.admin(), "1.1.0", tmp_path, channel="stable")
        rollout = server.admin().create_rollout(firmware["firmware_id"], EVERYBODY)["rollout_id"]

        ours = Ours(Watched(server.url, server.process), server.token, fleet)
        uvloop.run(update(ours, ours.fleet, 32, twice=True))
        shown = server.admin().get_rollout(rollout)
        assert shown["results"] == {"success": 500}
        assert shown["total"]["healthy"] == 500
        until(lambda: server.admin().get_rollout(rollout)["status"] == "completed")
        text = server.admin().request("GET", "/metrics").text
        assert 'beacon_ota_attempts_total{device_type="esp32c3",result="success"' in text
        assert 'version="1.1.0"} 500.0' in text
        assert server.stop() == 0
        server.start()
        assert server.admin().get_rollout(rollout)["results"] == {"success": 500}
        assert "Traceback" not in server.log()


class Life(threading.Thread):
    """A beacon that keeps at it: every step again until it is answered, none left out.

    As on the real one, ``rebooting`` is not taken for said before it was acknowledged: a beacon
    that forgot it and asked for work from its old image would be one that did not boot.
    """

    def __init__(self, server: Server, beacon: TestBeacon, up: threading.Event):
        super().__init__(daemon=True)
        self.server, self.beacon, self.up = server, beacon, up
        self.acknowledged = self.over = False

    def run(self) -> None:
        while not (self.acknowledged or self.over):
            self.up.wait()
            try:
                self.beacon.connect(self.server.url)
                self._go()
            except (OSError, http.client.HTTPException, AssertionError, ValueError):
                time.sleep(0.05)  # killed while it answered, or not up yet

    def _go(self) -> None:
        beacon = self.beacon
        while (offer := beacon.offer()) is None:
            time.sleep(0.25)
        if beacon.download(offer).status != 200:
            return
        self._insist("rebooting", offer)
        beacon.install(offer)
        self._insist("success", offer, previous_version="1.0.0")
        self.acknowledged = True

    def _insist(self, word: str, offer: dict, **more) -> None:
        while not self.over:
            self.up.wait()
            try:
                self.beacon.connect(self.server.url)
                if self.beacon.report(word, offer, **more).status == 200:
                    return
            except (OSError, http.client.HTTPException, AssertionError, ValueError):
                pass
            time.sleep(0.05)


def test_kills_at_random_lose_nothing_that_was_acknowledged(tmp_path):
    """Beacons go on by themselves after each restart; no outcome is lost or doubled."""
    chance = random.Random(4)
    with Server(tmp_path / "data") as server:
        fleet = beacons(server, 24)
        firmware = upload(server.admin(), "1.1.0", tmp_path, channel="stable")
        rollout = server.admin().create_rollout(firmware["firmware_id"], EVERYBODY)["rollout_id"]
        up = threading.Event()
        up.set()
        lives = [Life(server, beacon, up) for beacon in fleet]
        try:
            for life in lives:
                life.start()
            for _ in range(3):
                goal = min(_acknowledged(lives) + chance.randint(2, 6), 24)
                until(lambda n=goal: _acknowledged(lives) >= n, deadline_s=180)
                up.clear()
                server.kill()
                promised = {life.beacon.id for life in lives if life.acknowledged}
                server.start()
                known = {
                    one["beacon_id"]
                    for one in server.admin().list_attempts(rollout)
                    if one["result"] == "success"
                }
                assert promised <= known
                up.set()
            until(lambda: _acknowledged(lives) == 24, deadline_s=180)
        finally:
            for life in lives:
                life.over = True
            up.set()
        rows = list(server.admin().list_attempts(rollout))
        assert sorted(one["beacon_id"] for one in rows) == sorted(one.id for one in fleet)
        assert {one["result"] for one in rows} == {"success"}
        assert server.admin().verify_audit()["entries"] > 24


def _acknowledged(lives: list[Life]) -> int:
    return sum(life.acknowledged for life in lives)


def test_reports_of_a_whole_fleet_at_once(tmp_path):
    """Everybody back from a power cut: all are answered."""
    with Server(tmp_path / "data") as server:
        fleet = beacons(server, 100)
        failures = []

        def go(beacon) -> None:
            try:
                answer = beacon.report("idle", journal=[[1, 0, "boot", "power", ""]])
                assert answer.json["journal_ack"] == 1
            except (AssertionError, BeaconOtaError, OSError) as error:
                failures.append(error)

        threads = [threading.Thread(target=go, args=(beacon,)) for beacon in fleet]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert all(one["first_seen"] for one in server.admin().list_beacons())
