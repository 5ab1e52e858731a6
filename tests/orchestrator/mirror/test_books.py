"""What primary and mirrors have counted stays exact when disks are copied, put back, and wiped."""

import shutil
import threading
from contextlib import ExitStack, suppress

import pytest

from beacon_ota.orchestrator.db.tables import changes
from beacon_ota.orchestrator.mirror import state
from beacon_ota.orchestrator.mirror import sync as mirrors
from beacon_ota.orchestrator.mirror.images import Images
from tests.orchestrator.copies import copy_data, put_back
from tests.orchestrator.elsewhere import Elsewhere
from tests.orchestrator.mirror.test_sync import CALM, DEADLINE_S, EVERYBODY, Scene
from tests.orchestrator.uplinks import Uplink
from tests.orchestrator.world import Local, ManualClock, _prepare, until

JUMPY = {**EVERYBODY, "gate": {"failure_sample": 10_000, "in_a_row": 1}}
STRICT = {**EVERYBODY, "gate": {"failure_sample": 10_000, "in_a_row": 3}}


class Books(Scene):
    """A scene whose disks can be copied and put back."""

    def __init__(self, folder, stack: ExitStack):
        super().__init__(folder, stack)
        self.stack = stack

    def copy(self, name: str, to: str):
        if name == "mirror":  # one without its lease on the disk would hand out nothing alone
            until(self.has_lease, deadline_s=DEADLINE_S, what="the lease to be written down")
        return copy_data(self.folder / name, self.folder / to)

    def has_lease(self) -> bool:
        kept = self.mirror.service.db.read(changes.get_setting, mirrors._LEASE)
        return self.mirror.call(kept) is not None

    def put_back_mirror(self, kept: str | None, fleet=()) -> None:
        """Put the mirror back from a copy; None: it begins with nothing."""
        self.mirror.stop()
        data = self.folder / "mirror"
        if kept is None:
            self.folder.joinpath("empty").mkdir(exist_ok=True)
            put_back(data, self.folder / "empty")
            data.rmdir()
            _prepare(data)
        else:
            put_back(data, self.folder / kept)
        self.mirror.start()
        for beacon in fleet:
            self.to_mirror(beacon)

    def put_back_primary(self, kept: str) -> None:
        self.uplink.cut()
        self.primary.stop()
        put_back(self.folder / "primary", self.folder / kept)
        self.primary.start()
        self.uplink.lead_to(self.primary.url)
        self.admin = self.primary.admin()
        self.uplink.restore()

    def twin(self, kept: str) -> Local:
        """Run a second server on a copy of the mirror's disk, with its token."""
        shutil.copy(self.folder / "mirror.token", self.folder / f"{kept}.token")
        return self.stack.enter_context(
            Local(
                self.folder / kept,
                clock=self.clock,
                upstream=self.uplink.url,
                upstream_token=self.token,
            )
        )

    def results(self, rollout: str) -> dict[str, int]:
        return self.admin.get_rollout(rollout)["results"]

    def counted(self, rollout: str, **results: int) -> None:
        """Wait until the primary has counted exactly this."""
        until(
            lambda: self.results(rollout) == results,
            deadline_s=DEADLINE_S,
            what=f"the primary to count {results}, it has {self.results(rollout)}",
        )

    def kinds(self) -> list[str]:
        told = self.admin.call("GET", "/api/events/latest", params={"limit": 500})
        return [one["kind"] for one in told["events"]]

    def status(self, rollout: str) -> str:
        return self.admin.get_rollout(rollout)["status"]

    def hours(self, count: int, fleet=()) -> None:
        """Let hours pass, with polls, and everybody's engine at work."""
        for _ in range(count):
            self.clock.at += 60
            for beacon in fleet:
                beacon.poll()
            self.clock.at += 3540
            self.mirror.step()
            self.primary.step()


@pytest.fixture
def scene(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(mirrors, "SYNC_S", 0.1)
    with ExitStack() as stack:
        yield Books(tmp_path, stack)
    failures = [record for record in caplog.records if record.exc_info]
    assert not failures, caplog.text


# ---- a mirror that was put back from an older copy ----


def test_a_mirror_put_back_from_an_older_copy_is_believed(scene):
    """Its numbers are lower than those that were taken; what it tells is new all the same."""
    fleet = scene.beacons(4)
    rollout = scene.release(plan=CALM)
    scene.here(rollout)
    scene.even()
    scene.copy("mirror", "kept")
    for beacon in fleet[:2]:
        beacon.update(beacon.offered())
    scene.even()
    scene.counted(rollout, success=2)
    scene.put_back_mirror("kept", fleet)
    for beacon in fleet[2:]:
        beacon.update(beacon.offered())
    scene.even()
    scene.counted(rollout, success=4)
    until(
        lambda: scene.mirror.admin().get_rollout(rollout)["results"] == {"success": 4},
        deadline_s=DEADLINE_S,
        what="the mirror to be given back what it had told",
    )
    assert "mirror.parted" in scene.kinds()


def test_a_copy_whose_numbers_have_passed_those_that_were_taken(scene):
    """Other things under the same numbers: more of them than had been taken."""
    fleet = scene.beacons(6)
    rollout = scene.release(plan=CALM)
    scene.here(rollout)
    scene.even()
    scene.copy("mirror", "kept")
    fleet[0].update(fleet[0].offered())
    scene.even()
    scene.counted(rollout, success=1)
    scene.down()
    scene.put_back_mirror("kept", fleet)
    for beacon in fleet[1:]:
        beacon.update(beacon.offered())
    scene.uplink.restore()
    scene.even()
    scene.counted(rollout, success=6)


def test_a_halt_of_a_mirror_put_back_holds_everywhere(scene):
    fleet = scene.beacons(8)
    (other,) = scene.primary.beacons(1, "z", site="b")
    rollout = scene.release(plan=STRICT)
    scene.here(rollout)
    scene.even()
    scene.copy("mirror", "kept")
    for beacon in fleet[:4]:
        beacon.update(beacon.offered())
    scene.even()
    scene.put_back_mirror("kept", fleet)
    for beacon in fleet[4:7]:
        scene.clock.at += 5
        beacon.fail(beacon.offered())
    scene.mirror.step()
    until(lambda: scene.status(rollout) == "halted", deadline_s=DEADLINE_S)
    scene.here(rollout, "halted")
    assert other.offer() is None and fleet[7].offer() is None
    scene.counted(rollout, success=4, failed=3)


def test_two_mirrors_from_one_copied_disk(scene):
    """The copy is taken while the first runs; both tell, and nothing of either is lost."""
    fleet = scene.beacons(8)
    rollout = scene.release(plan=CALM)
    scene.here(rollout)
    scene.even()
    scene.copy("mirror", "twin")
    twin = scene.twin("twin")
    for number, beacon in enumerate(fleet):
        if number % 2:
            beacon.connect(twin.url)
        beacon.update(beacon.offered())
    scene.counted(rollout, success=8)
    assert "mirror.parted" in scene.kinds()


def test_a_copy_taken_between_an_exchange_and_its_answer(scene):
    """Both sides have the same exchange to tell again: the one that was made before the copy."""
    fleet = scene.beacons(6)
    rollout = scene.release(plan=CALM)
    scene.here(rollout)
    scene.even()
    scene.down()
    fleet[0].update(fleet[0].offered())
    scene.uplink.restore()
    scene.uplink.budget = 1
    scene.mirror.loop.call_soon_threadsafe(scene.mirror.service.mirror.wake)
    until(lambda: scene.uplink.budget == 0, deadline_s=DEADLINE_S)
    scene.copy("mirror", "twin")
    twin = scene.twin("twin")
    for number, beacon in enumerate(fleet[1:]):
        if number % 2:
            beacon.connect(twin.url)
        beacon.update(beacon.offered())
    scene.uplink.restore()
    scene.counted(rollout, success=6)
    for beacon in fleet:
        found = scene.admin.get_beacon(beacon.id)
        assert [one["status"] for one in found["reports"]] == ["success", "rebooting"]
    assert scene.kinds().count("attempt.success") == 6


def test_an_attempt_that_an_older_copy_has_open_is_not_given_up_there(scene):
    """It came to its end after the copy: the mirror is told so, and gives nobody up."""
    (beacon,) = scene.beacons(1)
    rollout = scene.release(plan=JUMPY)
    scene.here(rollout)
    offer = beacon.offered()
    assert beacon.download(offer).status == 200
    scene.even()
    scene.copy("mirror", "kept")
    beacon.report("rebooting", offer)
    beacon.install(offer)
    beacon.report("success", offer, previous_version="1.0.0")
    scene.even()
    scene.counted(rollout, success=1)
    scene.put_back_mirror("kept", [beacon])
    until(
        lambda: scene.mirror.admin().get_rollout(rollout)["results"] == {"success": 1},
        deadline_s=DEADLINE_S,
    )
    scene.hours(3)
    scene.even()
    assert scene.status(rollout) != "halted"
    assert scene.results(rollout) == {"success": 1}


# ---- a primary that was put back from an older copy ----


def test_a_primary_put_back_hears_again_what_it_has_forgotten(scene):
    """Also of an attempt that it believes to be under way at the mirror."""
    fleet = scene.beacons(4)
    rollout = scene.release(plan=STRICT)
    scene.here(rollout)
    begun = fleet[0].offered()
    assert fleet[0].download(begun).status == 200
    scene.even()
    scene.copy("primary", "kept")
    fleet[0].report("rebooting", begun)
    fleet[0].install(begun)
    fleet[0].report("success", begun, previous_version="1.0.0")
    fleet[1].update(fleet[1].offered())
    scene.even()
    scene.counted(rollout, success=2)
    scene.put_back_primary("kept")
    scene.counted(rollout, success=2)
    for beacon in fleet[2:]:
        beacon.update(beacon.offered())
    scene.even()
    scene.counted(rollout, success=4)
    found = scene.admin.get_beacon(fleet[1].id)
    assert [one["status"] for one in found["reports"]] == ["success", "rebooting"]


def test_a_primary_put_back_and_a_wiped_mirror(scene):
    """Nobody knows what became of an attempt: its beacon's polls say it, and nothing is halted."""
    fleet = scene.beacons(2)
    rollout = scene.release(plan=JUMPY)
    scene.here(rollout)
    begun = fleet[0].offered()
    assert fleet[0].download(begun).status == 200
    scene.even()
    scene.copy("primary", "kept")
    fleet[0].report("rebooting", begun)
    fleet[0].install(begun)
    fleet[0].report("success", begun, previous_version="1.0.0")
    scene.even()
    scene.put_back_primary("kept")
    scene.put_back_mirror(None, fleet)
    scene.here(rollout)
    scene.hours(4, fleet[:1])
    scene.even()
    scene.primary.step()
    scene.counted(rollout, success=1)
    assert scene.status(rollout) != "halted"


def test_a_wiped_mirror_is_given_its_attempts_back_however_late_the_image_comes(scene, monkeypatch):
    """Exchanges go on beside the download; none of them may make the primary forget to give."""
    (beacon, _) = scene.beacons(2)
    rollout = scene.release(plan=CALM)
    scene.here(rollout)
    begun = beacon.offered()
    assert beacon.download(begun).status == 200
    scene.even()
    come, download = threading.Event(), Images._download

    def slow(self, row, part):
        assert come.wait(DEADLINE_S)
        download(self, row, part)

    monkeypatch.setattr(Images, "_download", slow)
    answers, read = [], state.read_answer

    def reads(reply):
        answers.append(reply)
        return read(reply)

    monkeypatch.setattr(state, "read_answer", reads)
    scene.put_back_mirror(None, [beacon])
    until(lambda: len(answers) >= 4, deadline_s=DEADLINE_S)
    come.set()
    scene.here(rollout)
    assert scene.mirror.admin().get_rollout(rollout)["results"] == {"open": 1}
    beacon.report("rebooting", begun)
    beacon.install(begun)
    beacon.report("success", begun, previous_version="1.0.0")
    scene.even()
    scene.counted(rollout, success=1)


def test_what_a_wiped_mirror_is_not_given_back_the_primary_settles(scene):
    """Its beacon has left the site: nobody else would ever end the attempt."""
    (beacon, _) = scene.beacons(2)
    rollout = scene.release(plan=CALM)
    scene.here(rollout)
    assert beacon.download(beacon.offered()).status == 200
    scene.even()
    scene.counted(rollout, open=1)
    scene.down()
    scene.admin.change_beacon(beacon.id, site="b")
    scene.uplink.restore()
    scene.put_back_mirror(None)
    scene.known(1)
    scene.clock.at += 3600
    scene.primary.step()
    scene.counted(rollout, lost=1)


def test_a_primary_put_back_to_before_a_halt_of_its_own(scene):
    """The mirror has been told of the halt: it holds."""
    fleet = scene.beacons(2)
    (other,) = scene.primary.beacons(1, "z", site="b")
    rollout = scene.release(plan=CALM)
    scene.here(rollout)
    scene.even()
    scene.copy("primary", "kept")
    scene.admin.post_rollout_action(rollout, "halt", "it burns")
    scene.here(rollout, "halted")
    scene.put_back_primary("kept")
    until(lambda: scene.status(rollout) == "halted", deadline_s=DEADLINE_S)
    assert scene.admin.get_rollout(rollout)["by"] == "mirror lan-a"
    scene.here(rollout, "halted")
    other.connect(scene.primary.url)
    assert fleet[0].offer() is None and other.offer() is None
    # Who has seen it resumes it, and that holds, too.
    scene.admin.post_rollout_action(rollout, "resume", "looked at it")
    scene.here(rollout)
    scene.even()
    assert scene.status(rollout) == "active"


def test_a_forgotten_halt_is_told_by_every_mirror_and_done_once(scene):
    """The second one comes back when somebody has looked at it, and resumed."""
    (beacon,) = scene.beacons(1)
    (other,) = scene.primary.beacons(1, "z", site="b")
    made = scene.admin.create_mirror("lan-b", "b")
    line = scene.stack.enter_context(Uplink(scene.primary.url))
    given = {"upstream": line.url, "upstream_token": made["token"]}
    second = scene.stack.enter_context(Local(scene.folder / "b", clock=scene.clock, **given))
    rollout = scene.release(plan=CALM)

    def there(status: str) -> bool:
        entry = second.service.fleet.rollouts.get(rollout)
        return entry is not None and entry.state.status == status

    scene.here(rollout)
    scene.even()
    scene.copy("primary", "kept")
    scene.admin.post_rollout_action(rollout, "halt", "it burns")
    scene.here(rollout, "halted")
    until(lambda: there("halted"), deadline_s=DEADLINE_S)
    line.cut()
    scene.clock.at += 60
    scene.put_back_primary("kept")
    line.lead_to(scene.primary.url)
    until(lambda: scene.status(rollout) == "halted", deadline_s=DEADLINE_S)
    scene.clock.at += 60
    scene.admin.post_rollout_action(rollout, "resume", "looked at it")
    scene.here(rollout)
    line.restore()
    until(lambda: there("active"), deadline_s=DEADLINE_S, what="the second mirror to go on")
    assert scene.status(rollout) == "active"
    other.connect(second.url)
    assert beacon.offer() is not None and other.offer() is not None


def test_a_primary_put_back_to_before_a_mirrors_halt(scene):
    fleet = scene.beacons(4)
    rollout = scene.release(plan=STRICT)
    scene.here(rollout)
    scene.even()
    scene.copy("primary", "kept")
    for beacon in fleet[:3]:
        scene.clock.at += 5
        beacon.fail(beacon.offered())
    scene.mirror.step()
    until(lambda: scene.status(rollout) == "halted", deadline_s=DEADLINE_S)
    scene.even()
    scene.put_back_primary("kept")
    until(lambda: scene.status(rollout) == "halted", deadline_s=DEADLINE_S)
    scene.counted(rollout, failed=3)


def test_a_primary_put_back_is_told_of_its_own_beacons_by_the_mirror(scene):
    """A success that the primary itself acknowledged, and passed on before its disk was lost."""
    (beacon,) = scene.beacons(1)
    rollout = scene.release(plan=CALM)
    scene.here(rollout)
    scene.even()
    scene.copy("primary", "kept")
    beacon.connect(scene.primary.url)
    beacon.update(beacon.offered())
    scene.counted(rollout, success=1)
    until(
        lambda: scene.mirror.admin().get_rollout(rollout)["results"] == {"success": 1},
        deadline_s=DEADLINE_S,
    )
    scene.put_back_primary("kept")
    scene.counted(rollout, success=1)


def test_a_resumed_rollout_is_not_halted_again_by_an_older_copy(scene):
    """The copy has a halt to tell that was told before, and was looked at since."""
    fleet = scene.beacons(5)
    rollout = scene.release(plan=STRICT)
    scene.here(rollout)
    scene.down()
    for beacon in fleet[:3]:
        scene.clock.at += 5
        beacon.fail(beacon.offered())
    scene.mirror.step()
    scene.here(rollout, "halted")
    scene.copy("mirror", "kept")
    scene.uplink.restore()
    until(lambda: scene.status(rollout) == "halted", deadline_s=DEADLINE_S)
    scene.even()
    scene.clock.at += 60
    scene.admin.post_rollout_action(rollout, "resume", "looked at it")
    scene.here(rollout)
    scene.put_back_mirror("kept", fleet)
    scene.even()
    scene.here(rollout)
    assert scene.status(rollout) == "active"
    fleet[3].update(fleet[3].offered())
    scene.even()
    scene.counted(rollout, success=1, failed=3)


# ---- roaming while the line is down ----


def test_begun_at_the_primary_and_finished_at_the_mirror(scene):
    """The primary gives up nobody whom a mirror may have heard; what that heard counts."""
    (beacon,) = scene.beacons(1)
    rollout = scene.release(plan=JUMPY)
    scene.here(rollout)
    beacon.connect(scene.primary.url)
    offer = beacon.offered()
    assert beacon.download(offer).status == 200
    until(
        lambda: offer["attempt_id"] in scene.mirror.service.fleet.open_attempts,
        deadline_s=DEADLINE_S,
        what="the mirror to know of the attempt",
    )
    scene.down()
    scene.to_mirror(beacon)
    assert beacon.report("rebooting", offer).status == 200
    beacon.install(offer)
    assert beacon.report("success", offer, previous_version="1.0.0").json["recorded"] == "first"
    scene.hours(4)
    assert scene.results(rollout) == {"open": 1}
    scene.uplink.restore()
    scene.even()
    scene.primary.step()
    scene.counted(rollout, success=1)
    assert scene.status(rollout) != "halted"


def test_a_success_beats_what_was_concluded_from_silence(scene):
    """The primary has given the beacon up in the end, after all its patience."""
    (beacon,) = scene.beacons(1)
    rollout = scene.release(plan=CALM)
    scene.here(rollout)
    beacon.connect(scene.primary.url)
    offer = beacon.offered()
    assert beacon.download(offer).status == 200
    until(
        lambda: offer["attempt_id"] in scene.mirror.service.fleet.open_attempts,
        deadline_s=DEADLINE_S,
    )
    scene.down()
    scene.to_mirror(beacon)
    assert beacon.report("rebooting", offer).status == 200
    beacon.install(offer)
    assert beacon.report("success", offer, previous_version="1.0.0").status == 200
    scene.clock.at += 30 * 86400
    scene.primary.step()
    assert scene.results(rollout) == {"lost": 1}
    scene.uplink.restore()
    scene.even()
    scene.counted(rollout, success=1)
    (row,) = scene.admin.list_attempts(rollout)
    assert row["late_result"] is None


def test_begun_at_the_mirror_and_gone_on_with_at_the_primary(scene):
    """Two attempts, one beacon, one success; what the mirror gave up was no failure."""
    fleet = scene.beacons(3)
    rollout = scene.release(plan=JUMPY)
    scene.here(rollout)
    scene.known(3)
    scene.down()
    beacon = fleet[0]
    begun = beacon.offered()
    assert beacon.download(begun).status == 200
    beacon.connect(scene.primary.url)
    scene.clock.at += 60
    assert beacon.report("rebooting", begun).status == 409
    beacon.update(beacon.offered())
    scene.hours(3)
    scene.here(rollout, "halted")  # here at once; nobody can be asked
    scene.uplink.restore()
    scene.here(rollout, "active")
    scene.even()
    scene.primary.step()
    assert scene.status(rollout) == "active"
    scene.counted(rollout, success=1, stopped=1)
    scene.mirror.step()
    scene.here(rollout, "active")
    fleet[1].update(fleet[1].offered())
    scene.even()
    scene.counted(rollout, success=2, stopped=1)


@pytest.mark.parametrize("ahead_s", [45, 240])
def test_gone_on_with_at_the_primary_whose_clock_is_behind(scene, ahead_s):
    """By the times alone the mirror's attempt, begun before the other, came after it."""
    fleet = scene.beacons(2)
    beacon = fleet[0]
    rollout = scene.release(plan=JUMPY)
    scene.here(rollout)
    scene.known(2)
    scene.mirror.stop()
    clock = scene.mirror.clock = ManualClock(scene.clock.at + ahead_s)
    scene.mirror.start()
    scene.to_mirror(beacon)
    beacon.clock = clock.now
    scene.here(rollout)
    until(lambda: scene.mirror.service.mirror.hands_out, deadline_s=DEADLINE_S)
    scene.down()
    begun = beacon.offered()
    assert beacon.download(begun).status == 200
    beacon.connect(scene.primary.url)
    beacon.clock = scene.clock.now
    beacon.update(beacon.offered())  # at the same moment
    for _ in range(3):
        scene.clock.at += 3600
        clock.at += 3600
        beacon.poll()
        scene.mirror.step()
        scene.primary.step()
    scene.uplink.restore()
    scene.even()
    scene.primary.step()
    scene.counted(rollout, success=1, stopped=1)
    assert scene.status(rollout) == "active"
    scene.here(rollout, "active")


def test_silence_that_halts_a_mirror_in_memory_is_doubted_before_it_is_told(scene):
    """Its database takes nothing then; it hears all the same what the primary knows."""
    fleet = scene.beacons(3)
    rollout = scene.release(plan=JUMPY)
    scene.here(rollout)
    scene.known(3)
    scene.down()
    beacon = fleet[0]
    begun = beacon.offered()
    assert beacon.download(begun).status == 200
    beacon.connect(scene.primary.url)
    scene.clock.at += 60
    beacon.update(beacon.offered())
    scene.clock.at += 3 * 3600
    with Elsewhere(scene.mirror) as elsewhere:
        halts_in_memory(scene.mirror, elsewhere, rollout)
    scene.here(rollout, "halted")
    scene.uplink.restore()
    scene.here(rollout, "active")
    scene.even()
    scene.primary.step()
    assert scene.status(rollout) == "active"
    scene.counted(rollout, success=1, stopped=1)


def test_what_ends_during_an_exchange_is_told_before_a_halt_that_rests_on_it(scene):
    """The engine gives a beacon up when it was read what is to be told, and nothing was heard."""
    fleet = scene.beacons(3)
    rollout = scene.release(plan=JUMPY)
    scene.here(rollout)
    scene.known(3)
    scene.down()
    beacon = fleet[0]
    begun = beacon.offered()
    assert beacon.download(begun).status == 200
    beacon.connect(scene.primary.url)
    scene.clock.at += 60
    beacon.update(beacon.offered())
    scene.clock.at += 3 * 3600
    mirror, engine = scene.mirror.service.mirror, scene.mirror.engine
    told, settled = mirror._tell, engine._conclude_attempts
    ended = []

    async def settle(entry, now) -> None:
        if ended or entry.state.status != "halted":
            await settled(entry, now)

    async def tell(*given):
        entry = scene.mirror.service.fleet.rollouts[rollout]
        if not scene.uplink._down and not ended:
            ended.extend(entry.open_ids)
            async with engine.rollout_lock:
                await settle(entry, scene.clock.at)
        return await told(*given)

    engine._conclude_attempts = settle
    with Elsewhere(scene.mirror) as elsewhere:
        halts_in_memory(scene.mirror, elsewhere, rollout)
    scene.here(rollout, "halted")
    mirror._tell = tell
    scene.uplink.restore()
    scene.here(rollout, "active")
    scene.even()
    assert ended == [begun["attempt_id"]]
    assert scene.status(rollout) == "active"
    scene.counted(rollout, success=1, stopped=1)


def test_beacons_that_are_lost_halt_a_mirror_in_memory_and_then_everywhere(scene):
    fleet = scene.beacons(5)
    rollout = scene.release(plan=STRICT)
    scene.here(rollout)
    scene.known(5)
    scene.down()
    for beacon in fleet[:3]:
        scene.clock.at += 1
        assert beacon.download(beacon.offered()).status == 200
    scene.clock.at += 3600
    with Elsewhere(scene.mirror) as elsewhere:
        halts_in_memory(scene.mirror, elsewhere, rollout)
    scene.uplink.restore()
    until(lambda: scene.status(rollout) == "halted", deadline_s=DEADLINE_S)
    scene.even()
    scene.counted(rollout, lost=3)
    scene.here(rollout, "halted")


def halts_in_memory(mirror, elsewhere, rollout: str) -> None:
    """Have a mirror's engine look while its database takes nothing, and then does again."""
    elsewhere.hold()
    stepping = threading.Thread(target=steps, args=(mirror,))
    stepping.start()
    until(lambda: rollout in mirror.service.stops.current(), what="a halt in memory")
    elsewhere.let_go()
    stepping.join(DEADLINE_S)
    until(lambda: not mirror.service.stops.to_store(), what="the halt to be stored")


def steps(local) -> None:
    """Have an engine do what is due; what the database refuses is for its own loop to log."""
    with suppress(Exception):
        local.step()


def test_who_may_have_gone_on_at_a_mirror_halts_nothing_in_memory(scene):
    """As when it can be recorded: the mirror is cut off, and has yet to tell what it heard."""
    fleet = scene.beacons(3)
    rollout = scene.release(plan=JUMPY)
    scene.here(rollout)
    scene.known(3)
    fleet[0].connect(scene.primary.url)
    assert fleet[0].download(fleet[0].offered()).status == 200
    scene.even()
    scene.down()
    fleet[0].connect(scene.mirror.url)
    fleet[1].connect(scene.primary.url)
    fleet[1].offered()  # and not taken: it expires, which is to be written down
    scene.clock.at += 2 * 3600
    assert fleet[0].poll().status in (200, 204)
    scene.primary.call(scene.primary.service.flush_last_seen())
    with Elsewhere(scene.primary) as elsewhere:
        elsewhere.hold()
        stepping = threading.Thread(target=steps, args=(scene.primary,))
        stepping.start()
        stepping.join(DEADLINE_S)
        halted = dict(scene.primary.service.stops.current())
        elsewhere.let_go()
    assert not halted
    scene.primary.step()
    assert scene.status(rollout) == "active"


def test_rebooted_behind_the_mirror_and_back_at_the_primary(scene):
    """The primary cannot know the attempt; that the beacon runs the release it hears."""
    (beacon, _) = scene.beacons(2)
    rollout = scene.release(plan=JUMPY)
    scene.here(rollout)
    scene.known(2)
    scene.down()
    begun = beacon.offered()
    assert beacon.download(begun).status == 200
    assert beacon.report("rebooting", begun).status == 200
    beacon.install(begun)
    beacon.connect(scene.primary.url)
    scene.clock.at += 60
    assert beacon.report("success", begun, previous_version="1.0.0").status == 409
    scene.hours(3, [beacon])
    scene.here(rollout, "halted")
    scene.uplink.restore()
    scene.here(rollout, "active")
    scene.even()
    scene.primary.step()
    assert scene.status(rollout) == "active"
    scene.counted(rollout, success=1)


def test_beacons_that_are_lost_for_good_still_halt(scene):
    """A release that bricks stops at the mirror, and everywhere when the line is back."""
    fleet = scene.beacons(5)
    rollout = scene.release(plan=STRICT)
    scene.here(rollout)
    scene.known(5)
    scene.down()
    for beacon in fleet[:3]:
        scene.clock.at += 1
        offer = beacon.offered()
        assert beacon.download(offer).status == 200
        beacon.report("rebooting", offer)
    scene.hours(1)
    scene.here(rollout, "halted")
    assert fleet[4].offer() is None
    scene.uplink.restore()
    until(lambda: scene.status(rollout) == "halted", deadline_s=DEADLINE_S)
    scene.even()
    scene.counted(rollout, lost=3)
    scene.here(rollout, "halted")


# ---- moved while the mirror is cut off ----


def test_a_beacon_moved_out_of_the_site_keeps_its_success(scene):
    (beacon, other) = scene.beacons(2)
    rollout = scene.release(plan=CALM)
    scene.here(rollout)
    scene.known(2)
    scene.down()
    beacon.update(beacon.offered())
    scene.admin.change_beacon(beacon.id, site="b")
    scene.uplink.restore()
    scene.known(1)
    scene.even()
    scene.counted(rollout, success=1)
    shown = scene.admin.get_beacon(beacon.id)
    assert shown["version"] == "1.1.0"
    assert [one["status"] for one in shown["reports"]] == ["success", "rebooting"]
    other.update(other.offered())
    scene.even()
    scene.counted(rollout, success=2)


def test_a_beacon_moved_in_the_middle_of_an_attempt_finishes_it_where_it_is(scene):
    """That the mirror lets go of it is no end of the attempt."""
    (beacon, _) = scene.beacons(2)
    rollout = scene.release(plan=JUMPY)
    scene.here(rollout)
    offer = beacon.offered()
    assert beacon.download(offer).status == 200
    assert beacon.report("rebooting", offer).status == 200
    scene.even()
    scene.admin.change_beacon(beacon.id, site="b")
    scene.known(1)
    scene.mirror.step()
    scene.even()
    beacon.install(offer)
    beacon.connect(scene.primary.url)
    said = beacon.report("success", offer, previous_version="1.0.0")
    assert said.json["recorded"] == "first"
    scene.counted(rollout, success=1)


def test_a_mirror_tells_nothing_of_a_former_beacon_with_another_key(scene):
    """What it may tell of those that have left is what it holds the key of."""
    (beacon,) = scene.beacons(1)
    rollout = scene.release(plan=CALM)
    scene.here(rollout)
    scene.known(1)
    scene.down()
    beacon.update(beacon.offered())
    scene.admin.change_beacon(beacon.id, site="b")
    beacon.connect(scene.primary.url)
    scene.admin.set_beacon_key(beacon.id, "5" * 64)
    beacon.key = bytes.fromhex("5" * 64)
    assert beacon.poll().status == 204
    scene.uplink.restore()
    scene.known(0)
    scene.even()
    assert scene.results(rollout) == {}
