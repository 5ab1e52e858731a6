"""Processes whose disks are copied while they run, and put back after they were killed."""

import secrets
import shutil
from contextlib import ExitStack

import pytest
import requests

from tests.orchestrator.copies import copy_data, put_back
from tests.orchestrator.uplinks import Uplink
from tests.orchestrator.world import Server, TestBeacon, until, upload

EVERYBODY = {"preset": "all-at-once", "window": "00:00-24:00"}
CALM = {**EVERYBODY, "gate": {"failure_sample": 10_000, "in_a_row": 10_000}}
STRICT = {**EVERYBODY, "gate": {"failure_sample": 10_000, "in_a_row": 3}}
SILENCE_S = 2.0
JUMPY = {
    **EVERYBODY,
    "gate": {"failure_sample": 10_000, "in_a_row": 1, "silence": f"{SILENCE_S:.0f}s"},
}
DEADLINE_S = 240.0


class Site:
    """A primary and the mirror of a site, as processes, and the beacons of the site."""

    def __init__(self, folder, stack: ExitStack, count: int, plan: dict):
        self.folder, self.stack = folder, stack
        self.primary = stack.enter_context(Server(folder / "primary"))
        self.admin = self.primary.admin()
        for path in ("a", "b"):
            self.admin.call("POST", "/api/sites", json={"path": path, "tz": "UTC"})
        self.uplink = stack.enter_context(Uplink(self.primary.url))
        token = folder / "a.upstream"
        token.write_text(self.admin.create_mirror("lan-a", "a")["token"])
        self.given = (f"--upstream={self.uplink.url}", f"--upstream-token-file={token}")
        self.mirror = stack.enter_context(Server(folder / "mirror", *self.given))
        self.fleet = []
        for number in range(count):
            key = secrets.token_bytes(32)
            self.admin.create_beacon(f"b{number}", "esp32c3", key=key.hex(), site="a")
            self.fleet.append(TestBeacon(self.mirror.url, f"b{number}", key))
        firmware = upload(self.admin, "1.1.0", folder, channel="stable")["firmware_id"]
        self.rollout = self.admin.create_rollout(firmware, plan)["rollout_id"]
        self.serves(self.mirror)
        until(lambda: len(list(self.mirror.admin().list_beacons())) == count, deadline_s=DEADLINE_S)
        self.even()

    def serves(self, mirror: Server, status: str = "active") -> None:
        until(
            lambda: [one["status"] for one in mirror.admin().list_rollouts()] == [status],
            deadline_s=DEADLINE_S,
            what=f"the mirror to have the rollout {status}",
        )

    def even(self) -> None:
        until(
            lambda: self.admin.list_mirrors()[0]["backlog"] == 0,
            deadline_s=DEADLINE_S,
            what="the mirror to have told everything",
        )

    def counted(self, **results: int) -> None:
        until(
            lambda: self.admin.get_rollout(self.rollout)["results"] == results,
            deadline_s=DEADLINE_S,
            what=f"the primary to count {results}",
        )

    def halted(self) -> None:
        until(
            lambda: self.admin.get_rollout(self.rollout)["status"] == "halted",
            deadline_s=DEADLINE_S,
        )

    def quiet(self) -> None:
        for server in (self.primary, self.mirror):
            assert "Traceback" not in server.log(), server.log()


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


def _again(server: Server, kept) -> None:
    """Kill a server, and start it on a copy of its disk."""
    server.kill()
    put_back(server.data, kept)
    server.start()
    _hands_out(server)


def _hands_out(server: Server) -> None:
    """Wait for a mirror's lease: a copy may have been taken before that was written down."""

    def ready() -> bool:
        mirror = requests.get(f"{server.url}/health", timeout=DEADLINE_S).json().get("mirror")
        return mirror is None or mirror["hands_out"]

    until(ready, deadline_s=DEADLINE_S)


@pytest.mark.timeout(600)
def test_a_killed_mirror_on_an_older_disk_is_believed_and_so_is_its_halt(tmp_path, stack):
    site = Site(tmp_path, stack, 6, STRICT)
    kept = copy_data(site.mirror.data, tmp_path / "kept")
    for beacon in site.fleet[:2]:
        beacon.update(beacon.offered())
    site.counted(success=2)
    _again(site.mirror, kept)
    for beacon in site.fleet[2:5]:
        beacon.connect(site.mirror.url)
        beacon.fail(beacon.offered())
    site.halted()
    site.counted(success=2, failed=3)
    site.serves(site.mirror, "halted")
    site.fleet[5].connect(site.mirror.url)
    assert site.fleet[5].offer() is None
    site.quiet()


@pytest.mark.timeout(600)
def test_two_processes_on_one_content(tmp_path, stack):
    site = Site(tmp_path, stack, 6, CALM)
    copy_data(site.mirror.data, tmp_path / "twin")
    shutil.copy(site.mirror.token_file, tmp_path / "twin.token")
    twin = stack.enter_context(Server(tmp_path / "twin", *site.given))
    _hands_out(twin)
    for number, beacon in enumerate(site.fleet):
        if number % 2:
            beacon.connect(twin.url)
        beacon.update(beacon.offered())
    site.counted(success=6)
    told = site.admin.call("GET", "/api/events/latest", params={"limit": 500})["events"]
    kinds = [one["kind"] for one in told]
    assert "mirror.parted" in kinds and kinds.count("attempt.success") == 6
    site.quiet()
    assert "Traceback" not in twin.log()


@pytest.mark.timeout(600)
def test_a_killed_primary_on_an_older_disk_is_told_again(tmp_path, stack):
    site = Site(tmp_path, stack, 4, CALM)
    begun = site.fleet[0].offered()
    assert site.fleet[0].download(begun).status == 200
    site.counted(open=1)
    kept = copy_data(site.primary.data, tmp_path / "kept")
    site.fleet[0].report("rebooting", begun)
    site.fleet[0].install(begun)
    site.fleet[0].report("success", begun, previous_version="1.0.0")
    site.fleet[1].update(site.fleet[1].offered())
    site.counted(success=2)
    site.admin.post_rollout_action(site.rollout, "halt", "it burns")
    site.serves(site.mirror, "halted")
    site.uplink.cut()
    _again(site.primary, kept)
    site.admin = site.primary.admin()
    site.uplink.lead_to(site.primary.url)
    site.uplink.restore()
    site.counted(success=2)
    site.halted()
    site.quiet()


@pytest.mark.timeout(600)
def test_begun_here_and_gone_on_with_there_while_the_line_was_down(tmp_path, stack):
    """One beacon roams in the middle of an attempt, and another is moved out of the site."""
    site = Site(tmp_path, stack, 2, JUMPY)
    roams, moved = site.fleet
    site.uplink.cut()
    moved.update(moved.offered())
    site.admin.change_beacon(moved.id, site="b")
    begun = roams.offered()
    assert roams.download(begun).status == 200
    roams.connect(site.primary.url)
    assert roams.report("rebooting", begun).status == 409
    roams.update(roams.offered())
    site.serves(site.mirror, "halted")  # it has to take the beacon for lost
    site.uplink.restore()
    site.counted(success=2, stopped=1)
    assert site.admin.get_rollout(site.rollout)["status"] != "halted"
    until(
        lambda: site.mirror.admin().list_rollouts()[0]["status"] in ("active", "completed"),
        deadline_s=DEADLINE_S,
        what="the mirror to go on",
    )
    assert site.admin.get_rollout(site.rollout)["status"] != "halted"
    site.quiet()
