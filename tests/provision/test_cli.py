"""``beacon-ota provision`` and ``monitor``, from the command line to a real orchestrator."""

import json
import os
import pty
import re
import select
import subprocess
import termios
import time

from beacon_ota.wire import adverts
from tests.orchestrator.world import COMMAND, environment
from tests.provision.commands import WIFI, near
from tests.provision.scene import ID, NAME, PASSWORD, PIN, SSID, scene

OTHER = bytes.fromhex("7cdfa1001122")
WAIT = 90.0


def test_one_beacon_from_a_script(v1, server, go, monkeypatch):
    with near(v1, server, monkeypatch) as s:
        s.wait(s.opened)
        [found] = json.loads(go("provision", "scan", "--seconds", "3", "--json"))
        assert (found["name"], found["state"], found["provisioned"]) == (NAME, "new", False)
        assert "new" in go("provision", "scan", "--seconds", "3")
        first = ("provision", "wifi", "--beacon", NAME[-6:], "--pin-file", "pin", *WIFI)
        done = json.loads(go(*first, "--site", "hq", "--channel", "beta", "--tag", "x", "--json"))
        assert (done["beacon_id"], done["poll"], done["registered"]) == (ID, "ok", "registered")
        assert done["ssid"] == SSID and "key" in done and done["key"] is None
        known = server.admin().call("GET", f"/api/beacons/{ID}")
        assert (known["site"], known["channel"], known["tags"]) == ("hq", "beta", ["x"])
        # Once more, after it has closed: the words say what to do.
        s.wait(lambda: not s.opened())
        said = go(*first[:-1], "1", code=3)
        assert "closed" in said and "press its button" in said
        s.unlock()
        again = go(*first)
        assert "online" in again and "updated" in again
        # What it is like, without a PIN and with one.
        s.unlock()
        facts = json.loads(go("provision", "status", "--beacon", NAME, "--json"))
        assert facts["version"] == "1.0.0" and "wifi" not in facts
        facts = json.loads(go("provision", "status", "--beacon", NAME, "--pin", PIN, "--json"))
        assert (facts["wifi"], facts["ssid"], facts["poll"]) == ("connected", SSID, "ok")
        assert "connected" in go("provision", "status", "--beacon", NAME, "--pin", PIN)
        # And back.
        go("provision", "reset", "--beacon", NAME, "--pin", PIN, "--yes")
        s.wait(lambda: len(s.beacon.boots) == 2)
        assert s.beacon.setting("wifi_ssid") is None


def test_the_beacon_says_what_board_it_is(v1, server, go, monkeypatch):
    """What was typed when it was registered, or is typed now, gives way to its own word."""
    admin = server.admin()
    if any(one["beacon_id"] == ID for one in admin.list_beacons()):
        admin.remove_beacon(ID)
    admin.create_beacon(ID, "esp32c3-8mb")
    with near(v1, server, monkeypatch) as s:
        s.wait(s.opened)
        base = ("provision", "wifi", "--beacon", NAME[-6:], "--pin-file", "pin", *WIFI)
        assert "type_syntax" in go(*base, "--type", "ESP 32", "--json", code=2)
        done = json.loads(go(*base, "--type", "esp32c3-1m", "--json"))
        assert (done["registered"], done["poll"]) == ("retyped", "ok")
        assert (done["device_type"], done["mistaken_for"]) == ("esp32c3", "esp32c3-1m")
        known = admin.get_beacon(ID)
        assert known["device_type"] == known["said_type"] == "esp32c3"
        s.unlock()
        said = go(*base, "--type", "esp32c3-1m")
        assert "no such board" in said and "device_type  esp32c3" in said
    admin.remove_beacon(ID)


def test_what_goes_wrong_has_words(v1, server, go, monkeypatch, tmp_path):
    with near(v1, server, monkeypatch) as s:
        base = ("provision", "wifi", "--beacon", NAME, "--search", "60", "--json")
        # Before the beacon is touched: nobody to register it with, nothing to ask.
        wrong = ("--url", "http://127.0.0.1:9", "--pin", PIN, "--ssid", SSID, "--open")
        assert "orchestrator_unreachable" in go(*base, *wrong, code=3)
        assert "network_missing" in go(*base, "--pin", PIN, code=2)
        assert "pin_missing" in go(*base, "--ssid", SSID, "--open", code=2)
        assert "site_unknown" in go(*base, "--pin", PIN, *WIFI[:4], "--site", "nowhere", code=1)
        assert "which password" in go(*base, "--pin", PIN, "--ssid", SSID, code=2)
        assert s.beacon.setting("beacon_key") is None
        # By the beacon's own word.
        said = go(*base, "--pin", "11111111", *WIFI[:4], code=4)
        assert "wrong_secret" in said and "(1 of 10)" in said
        (tmp_path / "bad").write_text("not the password")
        s.skip(2)
        bad = ("--pin", PIN, "--ssid", SSID, "--password-file", "bad")
        assert "wifi_wrong_password" in go(*base, *bad, code=4)
        said = go(*base, "--pin", PIN, "--ssid", "Site", "--open", code=3)
        assert "wifi_not_found" in said and "one of site (-55 dBm)" in said
        said = go("provision", "status", "--beacon", "FFFFFF", "--search", "1", code=3)
        assert "no_beacon" in said and NAME in said


def test_a_batch(v1, server, go, monkeypatch, tmp_path):
    """One label is wrong; the file is mended, and run again for that one only."""
    name = adverts.device_name(OTHER[:5] + bytes([OTHER[5] + 2])).decode()
    rows = "beacon,pin,tags\n{0},{2},a b\n{1},{3},\n"
    with (
        near(v1, server, monkeypatch, settings={"beacon_id": b"batch-1"}) as s,
        scene(v1, mac=OTHER, space=s.space, settings={"beacon_id": b"batch-2"}) as other,
    ):
        other.network.set_host(
            "orchestrator.local", "127.0.0.1", int(server.url.rpartition(":")[2])
        )
        file = tmp_path / "batch.csv"
        file.write_text(rows.format(NAME, name, PIN, "55555555"))
        run = ("provision", "batch", str(file), *WIFI[:4], "--search", "60", "--jobs", "2")
        said = go(*run, "--json", code=1)
        assert "\n]" in said, said
        found = json.loads(said[: said.index("\n]") + 2])
        assert [one["result"] for one in found] == ["provisioned", "wrong_secret"]
        assert [one["beacon_id"] for one in found if "beacon_id" in one] == ["batch-1"]
        assert server.admin().call("GET", "/api/beacons/batch-1")["tags"] == ["a", "b"]
        file.write_text(rows.format(NAME, name, PIN, PIN))
        s.wait(lambda: not s.opened())
        other.skip(5)
        shown = go(*run)
        assert "already" in shown and "provisioned" in shown and "batch-2" in shown


def test_monitor(v1, server, go, monkeypatch):
    with near(v1, server, monkeypatch, settings={"ibeacon": bytes(range(20))}) as s:
        s.wait(s.opened)
        told = [json.loads(x) for x in go("monitor", "--json", "--seconds", "5").splitlines()]
        assert told[0]["event"] == "found" and told[0]["name"] == NAME
        assert told[-1]["version"] == "1.0.0" and told[-1]["rssi"] == -37
        assert {one["event"] for one in told[1:]} <= {"changed"}
        assert [one for one in told if one["position"]], "positioning goes on meanwhile"
        table = go("monitor", "--seconds", "3")
        assert NAME in table and "1.0.0" in table and "not provisioned" in table


def test_as_a_dialogue(v1, server, tmp_path, monkeypatch):
    """At a terminal: which PIN (once wrongly), which network of the beacon's, which password."""
    env = {**environment(tmp_path, server), "TERM": "xterm", "COLUMNS": "160"}
    with near(v1, server, monkeypatch, settings={"beacon_id": b"asked"}) as s:
        s.network.add_access_point("weaker", "pass word", rssi=-80)
        s.wait(s.opened)
        terminal, theirs = pty.openpty()
        process = subprocess.Popen(
            [str(COMMAND), "provision", "wifi", "--search", "60"],
            env={**env, "BEACON_OTA_RADIO": s.space.spec},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            close_fds=True,
        )
        os.close(theirs)
        shown = ""

        def until(pattern: str) -> None:
            nonlocal shown
            end = time.monotonic() + WAIT
            while not re.search(pattern, shown):
                assert time.monotonic() < end, shown
                if select.select([terminal], [], [], 1)[0]:
                    try:
                        shown += os.read(terminal, 4096).decode("utf-8", "replace")
                    except OSError:
                        assert re.search(pattern, shown), shown

        def answer(text: str) -> None:
            os.write(terminal, text.encode() + b"\n")

        until("PIN on the label")
        answer("12345678")
        until(r"1 of 10\)[\s\S]*PIN on the label")
        s.skip(2)
        answer(PIN)
        until(r"1  site[\s\S]*2  weaker[\s\S]*number or name")
        answer("1")
        until("Password")
        while termios.tcgetattr(terminal)[3] & termios.ECHO:
            time.sleep(0.01)
        answer(PASSWORD)
        until(r"is online, after")
        until("registered")
        assert process.wait(WAIT) == 0
        os.close(terminal)
        assert PASSWORD not in shown
        assert s.beacon.setting("wifi_pass") == PASSWORD.encode()
