"""The commands on a computer with BlueZ: bleak's own backend, and the habits of the daemon."""

import asyncio
import contextlib
import fcntl
import gc
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator

import pytest

from beacon_ota.errors import ReachError
from beacon_ota.provision import contact, gatt, monitor, scan
from beacon_ota.virtual.radio.selection import select_radio
from beacon_ota.wire import adverts
from tests.orchestrator.world import COMMAND, environment
from tests.provision.commands import WIFI, near_bluez
from tests.provision.scene import ADDRESS, ID, NAME, PIN, run, scene

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="BlueZ is Linux's")

OTHER = bytes.fromhex("7cdfa1001122")
WAIT = 60.0
FIRST = ("provision", "wifi", "--beacon", NAME, "--pin-file", "pin", *WIFI)


@pytest.fixture(autouse=True)
def _nothing_left():
    """Collect what bleak keeps of event loops that have ended, before another test has to."""
    yield
    gc.collect()


def until(condition, what: str = "") -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


@contextlib.contextmanager
def meanwhile(condition, act) -> Iterator[None]:
    """Do something as soon as a condition is met, in a thread."""

    def body() -> None:
        until(condition)
        act()

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(WAIT)


# -- 1: what is remembered


def test_open_and_closed_are_told_apart(v1, server, go, monkeypatch):
    """Every scan shows an open beacon as open, whichever frame was seen; a closed one as closed."""
    with near_bluez(v1, server, monkeypatch) as (s, _):
        run(s.heard(lambda b: b.open))
        for _ in range(5):
            [found] = json.loads(go("provision", "scan", "--seconds", "1.5", "--json"))
            assert (found["name"], found["state"]) == (NAME, "new")
        go(*FIRST)
        run(s.heard(lambda b: not b.open))
        [found] = json.loads(go("provision", "scan", "--seconds", "1.5", "--all", "--json"))
        assert (found["open"], found["state"]) == (False, "running")
        assert json.loads(go("provision", "scan", "--seconds", "1.5", "--json")) == []
        # Found closed by us, or, because its frame is remembered, by the beacon itself.
        said = go(*FIRST[:-1], "2", code=(3, 4))
        assert "closed" in said
        rows = f"beacon,pin\n{NAME},{PIN}\n"
        with open("batch.csv", "w") as file:
            file.write(rows)
        shown = go("provision", "batch", "batch.csv", *WIFI[:4], "--json")
        assert json.loads(shown)[0]["result"] == "already"


def test_the_provisionable_frame_is_remembered_and_counts_no_more(v1, server, go, monkeypatch):
    with near_bluez(v1, server, monkeypatch) as (s, bluez):

        def offered() -> bool:
            bluez.skip(11)
            return "ServiceData" in (bluez.device(ADDRESS) or {})

        with meanwhile(lambda: bluez.sessions, lambda: until(offered)):
            go(*FIRST[:-2], "--search", "60")
        go("provision", "scan", "--seconds", "1")
        run(s.heard(lambda b: not b.open))
        bluez.skip(11)
        [found] = json.loads(go("provision", "scan", "--seconds", "1.5", "--all", "--json"))
        known = bluez.device(ADDRESS)
        assert known is not None and known["Name"] == NAME and "ServiceData" in known
        assert (found["open"], found["state"]) == (False, "running")


def test_the_monitor_does_not_flap(v1, server, go, monkeypatch):
    """A beacon that says the same all the time is there all the time; one that goes, goes."""
    monkeypatch.setattr(scan, "RENEW_S", 0.5, raising=False)
    monkeypatch.setattr(monitor, "GONE_AFTER_S", 3.0)
    with near_bluez(v1, server, monkeypatch) as (s, _):
        run(s.heard(lambda b: b.open))
        told = [json.loads(x) for x in go("monitor", "--json", "--seconds", "8").splitlines()]
        assert [one["event"] for one in told].count("found") == 1
        assert "gone" not in [one["event"] for one in told]
        assert told[-1]["open"]
        s.beacon.power_cut()
        told = [json.loads(x) for x in go("monitor", "--json", "--seconds", "2").splitlines()]
        assert told == []


# -- 2: what is forgotten


def test_the_pin_is_typed_a_minute_later(v1, server, go, monkeypatch):
    """BlueZ has dropped the device meanwhile: it is looked for again."""
    with near_bluez(v1, server, monkeypatch) as (s, bluez):

        async def body() -> object:
            found = await scan.find_beacon(select_radio(), NAME, 30)
            bluez.skip(40)
            assert bluez.device(ADDRESS) is None
            return await contact.talk_to_beacon(
                found, scan.BeaconFinder(select_radio()), lambda beacon: beacon.protocol_version()
            )

        assert run(body()) == (1, 3)


# -- 3 and 4: interrupted


class Terminal:
    """A command at a terminal."""

    def __init__(self, tmp_path, server, *args: str) -> None:
        self.shown = ""
        self.line, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [str(COMMAND), *args],
            env={**environment(tmp_path, server), "TERM": "xterm", "COLUMNS": "160"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            close_fds=True,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)

    def until(self, pattern: str) -> None:
        end = time.monotonic() + WAIT
        while not re.search(pattern, self.shown):
            assert time.monotonic() < end, self.shown
            if select.select([self.line], [], [], 1)[0]:
                try:
                    self.shown += os.read(self.line, 4096).decode("utf-8", "replace")
                except OSError:
                    assert re.search(pattern, self.shown), self.shown

    def type(self, text: str) -> None:
        os.write(self.line, text.encode())

    def end(self) -> int:
        """Return the exit code; a hanging command fails the test."""
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()
            os.close(self.line)


def test_ctrl_c_at_every_prompt(v1, server, go, monkeypatch, tmp_path):
    with near_bluez(v1, server, monkeypatch) as (s, bluez):
        run(s.heard(lambda b: b.open))
        at = Terminal(tmp_path, server, *FIRST[:4], *WIFI)
        at.until("PIN on the label")
        at.type("\x03")
        assert at.end() == 130, at.shown
        ask = ("provision", "wifi", "--beacon", NAME, "--pin-file", "pin")
        at = Terminal(tmp_path, server, *ask)
        at.until("number or name")
        at.type("\x03")
        assert at.end() == 130, at.shown
        until(lambda: not (bluez.device(ADDRESS) or {}).get("Connected"), "still connected")
        at = Terminal(tmp_path, server, *ask)
        at.until("number or name")
        at.type("1\n")
        at.until("Password")
        until(lambda: not termios.tcgetattr(at.line)[3] & termios.ECHO)
        at.process.send_signal(signal.SIGTERM)
        until(lambda: at.process.poll() is not None, "it hangs")
        assert termios.tcgetattr(at.line)[3] & termios.ECHO, "the terminal shows nothing"
        assert at.end() == 143, at.shown
        until(lambda: not (bluez.device(ADDRESS) or {}).get("Connected"), "still connected")
        at = Terminal(tmp_path, server, "provision", "reset", "--beacon", NAME, "--pin", PIN)
        at.until("will forget")
        at.type("\x03")
        assert at.end() == 130, at.shown


def test_the_connection_of_a_killed_command_is_not_taken_over(
    v1, server, go, monkeypatch, tmp_path
):
    """The connection stays with the daemon, and with it what was negotiated."""
    with near_bluez(v1, server, monkeypatch) as (s, bluez):
        run(s.heard(lambda b: b.open))
        at = Terminal(tmp_path, server, "provision", "wifi", "--beacon", NAME, "--pin-file", "pin")
        at.until("number or name")
        at.process.kill()
        at.end()
        known = bluez.device(ADDRESS)
        assert known is not None and known["Connected"]
        done = json.loads(go(*FIRST, "--json"))
        assert (done["beacon_id"], done["poll"]) == (ID, "ok")


def test_a_command_that_is_told_to_end_hangs_up(v1, server, go, monkeypatch, tmp_path):
    """At whatever moment: in the search, while it connects, in the exchange, while it waits."""
    with near_bluez(v1, server, monkeypatch) as (s, bluez):
        run(s.heard(lambda b: b.open))
        s.network.join_time = 1000
        for word in ("Connecting", "Proving", "Sending", "Joining"):
            at = Terminal(tmp_path, server, *FIRST)
            at.until(word)
            at.process.terminate()
            assert at.end() == 143, at.shown
            until(lambda: not (bluez.device(ADDRESS) or {}).get("Connected"), word)


# -- 5, 6, 7 and 9a: what is below fails


def test_without_a_bus(v1, server, go, monkeypatch):
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nowhere/bus")
    monkeypatch.delenv("BEACON_OTA_RADIO", raising=False)
    for command in (("provision", "scan"), ("monitor", "--seconds", "1"), FIRST):
        said = go(*command, code=3)
        assert "bluetooth_off" in said and "dbus" in said, said


def test_a_scan_that_cannot_be_stopped_has_found_what_it_has(v1, server, go, monkeypatch):
    with near_bluez(v1, server, monkeypatch) as (s, bluez):
        run(s.heard(lambda b: b.open))
        bluez.fail_calls("StopDiscovery", "org.bluez.Error.Failed")
        [found] = json.loads(go("provision", "scan", "--seconds", "1.5", "--json"))
        assert found["name"] == NAME


def test_an_adapter_that_is_busy_for_a_moment(v1, server, go, monkeypatch):
    """The kernel goes on with the scan of a daemon that was killed until the cycle is over."""
    monkeypatch.setattr(scan, "BUSY_PAUSE_S", 0.05)
    with near_bluez(v1, server, monkeypatch) as (s, bluez):
        run(s.heard(lambda b: b.open))
        bluez.fail_calls("StartDiscovery", "org.bluez.Error.InProgress", 3)
        [found] = json.loads(go("provision", "scan", "--seconds", "1.5", "--json"))
        assert found["name"] == NAME
        monkeypatch.setattr(scan, "BUSY_S", 0.2)
        bluez.fail_calls("StartDiscovery", "org.bluez.Error.InProgress")
        said = go("provision", "scan", code=3)
        assert "bluetooth_busy" in said and "another program" in said


def test_bluetooth_is_off(v1, server, go, monkeypatch):
    """The message says what to do, and shows no tuple."""
    with near_bluez(v1, server, monkeypatch) as (_, bluez):
        bluez.set_powered(False)
        for command in (("provision", "scan"), FIRST):
            said = go(*command, code=3)
            assert "bluetooth_off" in said and "turn Bluetooth on" in said
            assert "Reason" not in said and "(" not in said, said


@pytest.mark.parametrize("command", [("provision", "scan", "--seconds", "60"), ("monitor",)])
@pytest.mark.parametrize("fault", ["off", "killed", "restarted", "no bus"])
def test_bluetooth_goes_while_a_command_listens(v1, server, go, monkeypatch, command, fault):
    with near_bluez(v1, server, monkeypatch) as (s, bluez):

        def act() -> None:
            if fault == "off":
                bluez.set_powered(False)
            elif fault == "no bus":
                bluez.kill_bus()
            else:
                bluez.kill()
                if fault == "restarted":
                    bluez.restart()

        run(s.heard(lambda b: b.open))
        seen = "--json" if command[0] == "monitor" else "--all"
        with meanwhile(lambda: bluez.sessions and bluez.device(ADDRESS), act):
            said = go(*command, seen, code=3)
        assert "bluetooth_off" in said and "-127" not in said, said


@pytest.mark.parametrize("fault", ["off", "killed"])
def test_bluetooth_goes_while_a_beacon_is_provisioned(v1, server, go, monkeypatch, fault):
    """Nobody waits for an answer that cannot come."""
    with near_bluez(v1, server, monkeypatch) as (s, bluez):
        run(s.heard(lambda b: b.open))
        s.network.join_time = 1000

        def joining() -> bool:
            return "connecting" in s.beacon.console or s.beacon.wlan._connect_requested

        act = bluez.kill if fault == "killed" else lambda: bluez.set_powered(False)
        with meanwhile(joining, act):
            said = go(*FIRST, code=3)
        assert "bluetooth_off" in said, said


# -- 8: several at a time


def test_a_batch_of_two_at_a_time(v1, server, go, monkeypatch, tmp_path):
    name = adverts.device_name(OTHER[:5] + bytes([OTHER[5] + 2])).decode()
    admin = server.admin()
    with (
        near_bluez(v1, server, monkeypatch, settings={"beacon_id": b"pair-1"}) as (s, _),
        scene(v1, mac=OTHER, space=s.space, settings={"beacon_id": b"pair-2"}) as other,
    ):
        other.network.set_host(
            "orchestrator.local", "127.0.0.1", int(server.url.rpartition(":")[2])
        )
        (tmp_path / "batch.csv").write_text(
            f"beacon,pin\n{NAME},{PIN}\n{name},{PIN}\nABCDEF,{PIN}\n"
        )
        run_it = ("provision", "batch", "batch.csv", *WIFI[:4], "--search", "20", "--jobs", "3")
        said = go(*run_it, "--json", code=1)
        found = json.loads(said[: said.index("\n]") + 2])
        assert [one["result"] for one in found] == ["provisioned", "provisioned", "no_beacon"]
        assert {one["beacon_id"] for one in admin.list_beacons()} >= {"pair-1", "pair-2"}


def test_each_row_says_that_bluetooth_has_gone(v1, server, go, monkeypatch, tmp_path):
    with near_bluez(v1, server, monkeypatch) as (s, bluez):
        (tmp_path / "batch.csv").write_text(f"beacon,pin\nABCDE1,{PIN}\nABCDE2,{PIN}\n")
        with meanwhile(lambda: bluez.sessions, lambda: bluez.set_powered(False)):
            said = go("provision", "batch", "batch.csv", *WIFI[:4], "--json", code=1)
        found = json.loads(said[: said.index("\n]") + 2])
        assert [one["result"] for one in found] == ["bluetooth_off", "bluetooth_off"]


# -- 9: gone


def test_a_beacon_that_is_gone_is_tried_once(v1, server, go, monkeypatch):
    monkeypatch.setattr(gatt, "CONNECT_S", 1.0)
    monkeypatch.setattr(contact, "LOOK_AGAIN_S", 1.0)
    with near_bluez(v1, server, monkeypatch) as (s, _):
        run(s.heard(lambda b: b.open))
        steps: list[str] = []

        async def body() -> None:
            found = await scan.find_beacon(select_radio(), NAME, 30)
            s.beacon.power_cut()
            with pytest.raises(ReachError) as caught:
                await contact.talk_to_beacon(
                    found,
                    scan.BeaconFinder(select_radio()),
                    lambda beacon: beacon.protocol_version(),
                    on_step=lambda step, detail: steps.append(step),
                )
            assert caught.value.code == "out_of_range" and "not heard any more" in str(caught.value)

        asyncio.run(body())
        assert steps == ["connecting", "again"]
