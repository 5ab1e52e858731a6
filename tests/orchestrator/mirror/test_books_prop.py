"""Whatever is cut, copied, put back, wiped and moved in whatever order: the books come out even.

Beacons finish what they begin, within the time that they have, at whichever orchestrator they are.
So nobody is lost, and nothing but a halt by hand stops the rollout.
"""

import os
import random
from contextlib import ExitStack
from typing import Any

import pytest

from beacon_ota.orchestrator.db.tables import outbox
from beacon_ota.orchestrator.mirror import sync as mirrors
from tests.orchestrator.mirror.test_books import JUMPY, Books
from tests.orchestrator.world import Local, TestBeacon, until

SEEDS = range(int(os.environ.get("BEACON_OTA_SEEDS", "4")))
STEPS = 40
WAIT_S = float(os.environ.get("BEACON_OTA_WAIT", "120"))


class Walk:
    """A random walk over a scene, with what it has done."""

    def __init__(self, scene: Books, seed: int):
        self.scene, self.random = scene, random.Random(seed)
        self.trace: list[str] = []
        self.fleet = scene.beacons(9)
        self.rollout = scene.release(plan=JUMPY)
        scene.here(self.rollout)
        scene.known(len(self.fleet))
        scene.even()
        self.begun: dict[str, dict] = {}
        self.at = {beacon.id: "mirror" for beacon in self.fleet}
        self.copies = {"mirror": [None], "primary": []}
        self.twin: Local | None = None
        self.down = False
        self.copy_mirror()
        self.copy_primary()

    # ---- the beacons ----

    def reach(self, beacon: TestBeacon) -> None:
        """Connect a beacon to where it is: servers come back at other addresses."""
        where = {"primary": self.scene.primary, "mirror": self.scene.mirror, "twin": self.twin}
        server = where[self.at[beacon.id]]
        assert server is not None
        beacon.connect(server.url)

    def begin(self, beacon: TestBeacon) -> bool:
        self.reach(beacon)
        answer = beacon.call(
            "GET",
            f"/firmwares/latest/esp32c3?version={beacon.version}&image={beacon.image}",
            check=False,
        )
        if answer.status == 401:  # moved, and the mirror knows it
            self.at[beacon.id] = "primary"
            self.reach(beacon)
            answer = beacon.poll()
        if answer.status != 200:
            return False
        offer = answer.json
        if beacon.download(offer).status != 200:
            return False
        self.begun[beacon.id] = offer
        return True

    def go_on(self, beacon: TestBeacon) -> None:
        """Finish what was begun; or have it refused, and do it anew."""
        self.reach(beacon)
        offer = self.begun.pop(beacon.id)
        answer = self.say(beacon, "rebooting", offer)
        if answer == 401:
            self.at[beacon.id] = "primary"
            self.reach(beacon)
            answer = self.say(beacon, "rebooting", offer)
        if answer != 200:
            self.scene.clock.at += 1
            if self.begin(beacon):
                self.go_on(beacon)
            return
        old = beacon.version, beacon.image
        beacon.install(offer)
        answer = self.say(beacon, "success", offer, previous_version=old[0])
        assert answer == 200, answer

    def say(self, beacon: TestBeacon, word: str, offer: dict, **more) -> int:
        try:
            return beacon.report(word, offer, **more).status
        except AssertionError:
            return 401  # not sealed: it is not known there

    # ---- what happens ----

    def update(self) -> None:
        beacon = self.random.choice(self.fleet)
        if beacon.id not in self.begun and not self.begin(beacon):
            return
        self.go_on(beacon)

    def start(self) -> None:
        beacon = self.random.choice(self.fleet)
        if beacon.id not in self.begun:
            self.begin(beacon)

    def roam(self) -> None:
        beacon = self.random.choice(self.fleet)
        places = ["primary", "mirror"]
        # Two that speak with one token know nothing of each other's open attempts.
        if self.at[beacon.id] == "twin" or self.twin is not None:
            if beacon.id in self.begun:
                return
            places.append("twin" if self.twin else "mirror")
        self.at[beacon.id] = self.random.choice(places)

    def move(self) -> None:
        beacon = self.random.choice(self.fleet)
        site = self.random.choice(["a/x", "b"])
        self.scene.admin.change_beacon(beacon.id, site=site)

    def cut(self) -> None:
        self.scene.uplink.cut()
        self.down = True

    def restore(self) -> None:
        self.scene.uplink.restore()
        self.down = False

    def copy_mirror(self) -> None:
        name = f"m{len(self.trace)}"
        self.scene.copy("mirror", name)
        self.copies["mirror"].append(name)

    def put_back_mirror(self) -> None:
        self.scene.put_back_mirror(self.random.choice(self.copies["mirror"]))

    def copy_primary(self) -> None:
        name = f"p{len(self.trace)}"
        self.scene.copy("primary", name)
        self.copies["primary"].append(name)

    def put_back_primary(self) -> None:
        self.scene.put_back_primary(self.random.choice(self.copies["primary"]))
        if self.down:
            self.scene.uplink.cut()

    def start_twin(self) -> None:
        if self.twin is None:
            self.finish()
            self.scene.copy("mirror", "twin")
            self.twin = self.scene.twin("twin")

    def finish(self) -> None:
        for beacon in self.fleet:
            if beacon.id in self.begun:
                self.go_on(beacon)

    def hours(self) -> None:
        """Let hours pass, in which a line that is up is used."""
        if self.twin is not None and self.down:
            return  # twins give up each other's beacons: nobody could tell them
        self.finish()
        if not self.down:
            self.even()
        for _ in range(2):
            self.scene.clock.at += 60
            self.polls()
            self.scene.clock.at += 3540
            self.steps()

    def even(self) -> None:
        """Wait until everything has been told, and what came of it taken."""
        for mirror in (self.scene.mirror, self.twin) * 2:
            if mirror is not None:
                until(lambda m=mirror: not m.call(m.service.db.read(outbox.backlog_size)))
                exchange: Any = mirror.service.mirror
                count = exchange.rounds
                until(lambda one=exchange, n=count: one.rounds > n + 1)

    def polls(self) -> None:
        for beacon in self.fleet:
            self.reach(beacon)
            target = f"/firmwares/latest/esp32c3?version={beacon.version}&image={beacon.image}"
            beacon.call("GET", target, check=False)

    def steps(self) -> None:
        for server in (self.scene.mirror, self.scene.primary, self.twin):
            if server is not None:
                server.step()

    def run(self) -> None:
        ways = {
            self.update: 8,
            self.start: 5,
            self.roam: 6,
            self.move: 2,
            self.cut: 3,
            self.restore: 3,
            self.copy_mirror: 2,
            self.put_back_mirror: 2,
            self.copy_primary: 2,
            self.put_back_primary: 2,
            self.start_twin: 1,
            self.hours: 2,
        }
        for _ in range(STEPS):
            (way,) = self.random.choices(list(ways), list(ways.values()))
            self.trace.append(way.__name__)
            self.scene.clock.at += 1
            way()

    # ---- what has to be so in the end ----

    def successes(self, server: Local) -> set[str]:
        """Return the attempts that a server has as successes, on its disk."""

        def read(conn) -> set[str]:
            query = "SELECT id FROM attempts WHERE result = 'success'"
            return {row[0] for row in conn.exec_driver_sql(query)}

        return server.call(server.service.db.read(read))

    def show(self) -> None:
        """Print what each server knows."""
        query = (
            "SELECT beacon_id, id, mirror, taken_at, rebooting_at, result, ended_at, detail"
            " FROM attempts ORDER BY beacon_id, offered_at"
        )

        def read(conn) -> list:
            return list(conn.exec_driver_sql(query))

        for server in (self.scene.primary, self.scene.mirror, self.twin):
            if server is not None:
                print(server.url, *server.call(server.service.db.read(read)), sep="\n  ")
        print([(beacon.id, beacon.version, self.at[beacon.id]) for beacon in self.fleet])

    def check(self) -> None:
        servers = [self.scene.mirror, self.scene.primary, *([self.twin] if self.twin else [])]
        known = set().union(*map(self.successes, servers))
        self.trace.append("end")
        self.restore()
        self.hours()
        until(
            lambda: known <= self.successes(self.scene.primary),
            deadline_s=WAIT_S,
            what=f"the primary to have all of {known}",
        )
        self.scene.even()
        self.steps()
        rows = list(self.scene.admin.list_attempts(self.rollout))
        won = [row["beacon_id"] for row in rows if row["result"] == "success"]
        assert len(won) == len(set(won)), "a beacon has succeeded twice"
        ends = {row["id"]: row["result"] for row in rows}
        assert "lost" not in ends.values(), ends
        shown = self.scene.admin.get_rollout(self.rollout)
        assert shown["status"] != "halted", shown["reason"]
        self.scene.here(self.rollout, shown["status"])


_exchange = mirrors.Mirror.exchange


async def counted(mirror: Any) -> None:
    """Make an exchange, and count it."""
    await _exchange(mirror)
    mirror.rounds += 1


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_books_come_out_even(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(mirrors, "SYNC_S", 0.1)
    monkeypatch.setattr(mirrors.Mirror, "exchange", counted)
    monkeypatch.setattr(mirrors.Mirror, "rounds", 0, raising=False)
    with ExitStack() as stack:
        walk = Walk(Books(tmp_path, stack), seed)
        try:
            walk.run()
            walk.check()
        except BaseException:
            print("seed", seed, walk.trace)
            walk.show()
            raise
