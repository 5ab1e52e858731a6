"""The commands on real BlueZ: ``bluetoothd`` and a Linux kernel, whose adapter is in a radio space.

Beacons are virtual; everything from the command down to HCI is what a laptop has.
"""

import json
import signal
import time

import pytest

from beacon_ota.wire import access, adverts
from tests.bluez.conftest import note
from tests.firmware.beacons import bench, make
from tests.provision.scene import PIN, SSID, scene

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

IBEACON = bytes(range(20))
WIFI = ("--ssid", SSID, "--password-file", "wifi", "--search", "30")
AT = ("--orch-url", "http://orchestrator.local:8080")
IDENT, SECRET = b"door", bytes(range(16))


def name_of(mac: bytes) -> str:
    return adverts.device_name(mac[:5] + bytes([mac[5] + 2])).decode()


def beacon(v1, space, server, number: int, **settings):
    """A beacon out of its box, with a positioning frame, in real time."""
    mac = bytes.fromhex("7cdfa1b0") + bytes([number, 0])
    given = {"ibeacon": IBEACON, "beacon_id": f"real-{number}".encode(), **settings}
    made = scene(v1, mac=mac, space=space, scale=1, settings=given)

    class Near:
        name = name_of(mac)

        def __enter__(self):
            s = made.__enter__()
            s.network.set_host(
                "orchestrator.local", "127.0.0.1", int(server.url.rpartition(":")[2])
            )
            s.wait(s.opened)
            return s

        def __exit__(self, *error):
            return made.__exit__(*error)

    return Near()


def provision(machine, name: str, *more: str, **options):
    first = ("provision", "wifi", "--beacon", name, "--pin-file", "pin", "--json")
    return machine.command(*first, *WIFI, *AT, *more, **options)


def test_open_and_closed(machine, space, server, v1):
    """Five scans show an open beacon as open; once provisioned it is closed, at once."""
    near = beacon(v1, space, server, 1)
    with near as s:
        for _ in range(5):
            [found] = machine.command("provision", "scan", "--seconds", "3", "--json").json
            assert (found["name"], found["state"], found["open"]) == (near.name, "new", True)
        done = provision(machine, near.name).json
        assert (done["poll"], done["registered"]) == ("ok", "registered")
        s.wait(lambda: not s.opened())
        found = machine.command("provision", "scan", "--all", "--seconds", "3", "--json").json
        assert [(one["state"], one["open"]) for one in found] == [("running", False)]
        facts = machine.command("provision", "status", "--beacon", near.name, "--json").json
        assert (facts["version"], facts["provisioned"]) == ("1.0.0", True)
        rows = f"beacon,pin\n{near.name},{PIN}\n"
        machine.run("true", files={"batch.csv": rows})
        done = machine.command("provision", "batch", "batch.csv", *WIFI[:4], *AT, "--json").json
        assert done[0]["result"] == "already"


def test_ten_in_a_row(machine, space, server, v1):
    """From the box to online, each at the first attempt."""
    seconds, whole = [], []
    for number in range(10, 20):
        near = beacon(v1, space, server, number)
        with near:
            done = provision(machine, near.name)
            assert done.json["poll"] == "ok"
            seconds.append(done.json["seconds"])
            whole.append(done.seconds)
    note("wifi_s", seconds)
    note("wifi_command_s", whole)


def test_a_batch_of_two_at_a_time(machine, space, server, v1):
    first, second = beacon(v1, space, server, 30), beacon(v1, space, server, 31)
    with first, second:
        rows = f"beacon,pin\n{first.name},{PIN}\n{second.name},{PIN}\n"
        machine.run("true", files={"batch.csv": rows})
        batch = ("provision", "batch", "batch.csv", *WIFI, *AT, "--jobs", "2", "--json")
        done = machine.command(*batch)
        assert [one["result"] for one in done.json] == ["provisioned", "provisioned"]
        note("batch_of_two_s", done.seconds)


def test_status_with_the_pin(machine, space, server, v1):
    near = beacon(v1, space, server, 40)
    with near:
        status = ("provision", "status", "--beacon", near.name, "--pin", PIN, "--json")
        facts = machine.command(*status).json
        assert (facts["beacon_id"], facts["wifi"]) == ("real-40", "failed")


def test_the_monitor_does_not_flap(machine, space, server, v1):
    with beacon(v1, space, server, 50), beacon(v1, space, server, 51):
        shown = machine.command("monitor", "--json", "--seconds", "40").out
    told = [json.loads(line) for line in shown.splitlines()]
    assert sorted(one["name"] for one in told if one["event"] == "found") == sorted(
        name_of(bytes.fromhex("7cdfa1b0") + bytes([number, 0])) for number in (50, 51)
    )
    assert "gone" not in [one["event"] for one in told]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_connection_of_a_command_that_is_ended(machine, space, server, v1, number):
    """Killed, it leaves its connection to bluetoothd; the next command ends that, and begins."""
    near = beacon(v1, space, server, 60 + number)
    with near as s:
        s.network.join_time = 1000
        first = ("provision", "wifi", "--beacon", near.name, "--pin-file", "pin", *WIFI, *AT)
        running = machine.start_command(*first)
        s.wait(lambda: s.beacon.wlan._connect_requested, 60)
        machine.send_signal(running, number)
        done = machine.wait(running, 60)
        assert done.code == (143 if number == signal.SIGTERM else -9), done
        shown = machine.run("bluetoothctl", "devices", "Connected").out
        assert ("7C:DF:A1" in shown) == (number == signal.SIGKILL), shown
        s.network.join_time = 0.5
        s.skip(300)  # what was begun is over
        assert provision(machine, near.name).json["poll"] == "ok"


def test_a_beacon_that_goes(machine, space, server, v1):
    near = beacon(v1, space, server, 70)
    with near as s:
        s.network.join_time = 1000
        first = ("provision", "wifi", "--beacon", near.name, "--pin-file", "pin", *WIFI, *AT)
        running = machine.start_command(*first)
        s.wait(lambda: s.beacon.wlan._connect_requested, 60)
        begun = time.monotonic()
        s.beacon.power_cut()
        done = machine.wait(running, 120)
        assert done.code == 3 and "out_of_range" in done.err, done
        note("gone_s", time.monotonic() - begun)


def test_access(machine, space, server, v1):
    near = beacon(v1, space, server, 80, creds=IDENT + SECRET)
    address = ":".join(["7C", "DF", "A1", "B0", near.name[-4:-2], near.name[-2:]])
    with near:
        reader = machine.run(
            "python3", "/guest/reader.py", address, IDENT.decode(), SECRET.hex(), seconds=90
        )
        assert reader.code == 0, reader
        verdicts = json.loads(reader.out)
        assert [kind for kind, _ in verdicts] == [access.GRANTED, access.REFUSED]
        note("access_s", [took for _, took in verdicts])


def test_an_update_is_watched(machine, space, v1, small_core):
    """Percent that rise, the reboot, the trial, the new version; and then no update any more."""
    v2 = make(small_core, "2.0.0", filler=60_000)
    with bench(v1, bluetooth=space.make_backend(), scale=1, policy={"stall_s": 60}) as b:
        b.beacon.link.faults.throttle = 8_000
        watching = machine.start_command("monitor", "--json", "--seconds", "75")
        b.wait(lambda: [x for x in space.list_radios() if x["scanning"]], 60, "the machine scans")
        b.server.image, b.server.version, b.server.offering = v2, "2.0.0", True
        b.reported("success", 120)
        shown = machine.wait(watching, 150).out
    told = [json.loads(line) for line in shown.splitlines()]
    percent = [one["progress"] for one in told if one["progress"] is not None]
    assert percent == sorted(percent) and len(set(percent)) > 3, percent
    assert {"updating", "running"} <= {one["state"] for one in told}
    assert (told[-1]["version"], told[-1]["state"]) == ("2.0.0", "running")
    note("update_percent_seen", sorted(set(percent)))


def test_the_adapter_is_switched_off(machine, space, server, v1):
    near = beacon(v1, space, server, 90)
    with near:
        for command in (("provision", "scan", "--seconds", "90"), ("monitor",)):
            running = machine.start_command(*command)
            end = time.monotonic() + 60
            while not [one for one in space.list_radios() if one["scanning"]]:
                assert time.monotonic() < end
                time.sleep(0.1)
            assert machine.run("bluetoothctl", "power", "off").code == 0
            done = machine.wait(running, 60)
            assert done.code == 3 and "bluetooth_off" in done.err, done
            again = machine.command("provision", "scan", code=3)
            assert "turn Bluetooth on" in again.err and "Reason" not in again.err
            assert machine.run("bluetoothctl", "power", "on").code == 0


def test_bluetoothd_is_killed(machine, space, server, v1):
    """Last, because everything begins anew after it."""
    near = beacon(v1, space, server, 91)
    with near:
        running = machine.start_command("monitor")
        end = time.monotonic() + 60
        while not [one for one in space.list_radios() if one["scanning"]]:
            assert time.monotonic() < end
            time.sleep(0.1)
        machine.run("sh", "-c", "kill -9 $(cat /run/bluetoothd.pid)")
        done = machine.wait(running, 60)
        assert done.code == 3 and "service has ended" in done.err, done
        gone = machine.command("provision", "scan", code=3)
        assert "bluetooth_off" in gone.err and "systemctl start bluetooth" in gone.err
        machine.start("/guest/bluetoothd")
        machine.run(
            "sh", "-c", "until bluetoothctl show | grep -q 'Powered: yes'; do sleep 1; done"
        )
        assert provision(machine, near.name).json["poll"] == "ok"
