"""Administrators' work beside the event loop: bounded, over with its client, in nobody's way."""

import asyncio
import threading

import pytest

from beacon_ota.orchestrator.http.background import BackgroundPool
from beacon_ota.orchestrator.http.problems import Problem
from tests.orchestrator.world import Local, TestBeacon, until, upload

EVERYBODY = {"preset": "all-at-once", "window": "00:00-24:00"}


async def stays() -> bool:
    return False


async def left() -> bool:
    return True


def test_what_it_returns_and_raises():
    async def main() -> None:
        pool = BackgroundPool("test")
        assert await pool.run(stays, divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await pool.run(stays, divmod, 7, 0)

    asyncio.run(main())


def test_too_much_is_refused_by_name_and_there_is_room_again():
    async def main() -> None:
        pool = BackgroundPool("test", most=2)
        go_on = threading.Event()
        under_way = [asyncio.ensure_future(pool.run(stays, go_on.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Problem) as caught:
            await pool.run(stays, int)
        assert (caught.value.status, caught.value.code) == (503, "busy")
        go_on.set()
        assert await asyncio.gather(*under_way) == [True, True]
        assert await pool.run(stays, int) == 0

    asyncio.run(main())


def test_what_waits_for_somebody_who_left_is_not_begun():
    async def main() -> list[int]:
        pool = BackgroundPool("test")
        go_on = threading.Event()
        begun: list[int] = []
        first = asyncio.ensure_future(pool.run(stays, go_on.wait))
        await asyncio.sleep(0)
        waiting = [pool.run(left, begun.append, number) for number in range(3)]
        for one in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(one, Problem) and one.code == "client_gone"
        cancelled = asyncio.ensure_future(pool.run(stays, begun.append, 9))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        go_on.set()
        await first
        await pool.run(stays, begun.append, 10)
        return begun

    assert asyncio.run(main()) == [10]


# ---- beacons wait for no administrator ----


class Held:
    """Fills pools with work that goes on until it is let go."""

    def __init__(self, local: Local):
        self.local, self.go_on = local, threading.Event()
        self.tasks: list[asyncio.Future] = []

    def __enter__(self) -> "Held":
        begun: list[int] = []

        def wait(*_given: object) -> None:
            begun.append(1)
            self.go_on.wait()

        async def fill() -> None:
            loop = asyncio.get_running_loop()
            self.tasks = [loop.run_in_executor(None, wait) for _ in range(64)]
            db = self.local.service.db
            self.tasks += [asyncio.ensure_future(db.read(wait)) for _ in range(8)]

        self.local.call(fill())
        until(lambda: len(begun) > 4)
        return self

    def __exit__(self, *_exception: object) -> None:
        self.go_on.set()


def taken(local, tmp_path) -> tuple[TestBeacon, dict]:
    release = upload(local.admin(), "1.1.0", tmp_path, channel="stable")["firmware_id"]
    local.admin().create_rollout(release, EVERYBODY)
    (beacon,) = local.beacons(1)
    return beacon, beacon.offered()


def test_a_cold_download_waits_for_no_administrator(local, tmp_path):
    beacon, offer = taken(local, tmp_path)
    for release in local.service.fleet.releases.values():
        local.service.blobs.evict(release.row["blob"])
    with Held(local):
        assert beacon.download(offer).status == 200


def test_a_repeated_report_waits_for_no_administrator(local, tmp_path):
    beacon, offer = taken(local, tmp_path)
    beacon.update(offer)
    with Held(local):
        answer = beacon.report("success", offer, previous_version="1.0.0")
    assert answer.json["recorded"] == "repeated"


def test_stopping_waits_for_no_administrator(local, tmp_path):
    taken(local, tmp_path)
    go_on = threading.Event()

    async def fill() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(64):
            loop.run_in_executor(None, go_on.wait)

    local.call(fill())
    stopped = local.service.db._writer
    local.loop.call_soon_threadsafe(local.listen.stop.set)
    until(lambda: not stopped.is_alive())
    until(lambda: local.service.replays._map.closed)
    go_on.set()
    local.stop()
