"""Counts that are exact however many report at once, and through kills."""

import asyncio
import random
import threading

import uvloop

from beacon_ota.errors import BeaconOtaError
from tests.orchestrator.bench import cycles
from tests.orchestrator.world import Server, beacons, until, upload

EVERYBODY = {"preset": "all-at-once", "window": "00:00-24:00"}


def test_500_updates_with_every_report_sent_twice_at_once(tmp_path):
    with Server(tmp_path / "data") as server:
        fleet = beacons(server, 500)
        firmware = upload(server.admin(), "1.1.0", tmp_path, channel="stable")
        rollout = server.admin().create_rollout(firmware["firmware_id"], EVERYBODY)["rollout_id"]

        async def main() -> None:
            await cycles(server, fleet, 32, download=False, twice=True)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
        shown = server.admin().rollout(rollout)
        assert shown["results"] == {"success": 500}
        assert shown["total"]["healthy"] == 500
        until(lambda: server.admin().rollout(rollout)["status"] == "completed")
        text = server.admin()._send("GET", "/metrics").text
        assert 'beacon_ota_attempts_total{device_type="esp32c3",result="success"' in text
        assert 'version="1.1.0"} 500.0' in text
        assert server.stop() == 0
        server.start()
        assert server.admin().rollout(rollout)["results"] == {"success": 500}
        assert "Traceback" not in server.log()


def test_kills_at_random_lose_nothing_that_was_acknowledged(tmp_path):
    """Beacons go on by themselves after each restart; no outcome is lost or doubled."""
    chance = random.Random(4)
    with Server(tmp_path / "data") as server:
        fleet = beacons(server, 24)
        firmware = upload(server.admin(), "1.1.0", tmp_path, channel="stable")
        rollout = server.admin().create_rollout(firmware["firmware_id"], EVERYBODY)["rollout_id"]
        up = threading.Event()
        up.set()
        acknowledged: set[str] = set()

        def live(beacon) -> None:
            """A beacon that keeps at it: every step again until it is answered."""
            while True:
                up.wait()
                try:
                    beacon.connect(server.url)
                    offer = beacon.offer() if beacon.version == "1.0.0" else beacon.last
                    if offer is None:
                        continue
                    beacon.last = offer
                    if beacon.version == "1.0.0":
                        if beacon.download(offer).status != 200:
                            continue
                        if beacon.report("rebooting", offer).status != 200:
                            continue
                        beacon.install(offer)
                    answer = beacon.report("success", offer, previous_version="1.0.0")
                    if answer.status == 200:
                        acknowledged.add(beacon.id)
                        return
                except (OSError, AssertionError, ValueError):
                    pass
                except Exception as error:
                    if type(error).__module__ != "http.client":
                        raise

        threads = [threading.Thread(target=live, args=(beacon,), daemon=True) for beacon in fleet]
        for thread in threads:
            thread.start()
        for _ in range(3):
            before = len(acknowledged)
            until(lambda n=before: len(acknowledged) >= min(n + chance.randint(2, 6), 24))
            up.clear()
            server.kill()
            promised = set(acknowledged)
            server.start()
            known = {
                one["beacon_id"]
                for one in server.admin().attempts(rollout)
                if one["result"] == "success"
            }
            assert promised <= known
            up.set()
        for thread in threads:
            thread.join(20)
        assert len(acknowledged) == 24
        rows = list(server.admin().attempts(rollout))
        assert sorted(one["beacon_id"] for one in rows) == sorted(one.id for one in fleet)
        assert {one["result"] for one in rows} == {"success"}
        assert server.admin().verify_audit()["entries"] > 24


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
        assert all(one["first_seen"] for one in server.admin().beacons())
