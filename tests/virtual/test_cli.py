"""``beacon-ota virtual run`` and ``fleet``, as a shell sees them."""

import json
import os
import signal
import stat
import subprocess
import sys

import pytest

from beacon_ota import cli
from beacon_ota.fleet.fleet import VirtualFleet, mac_from_name, write_settings
from beacon_ota.virtual.flash.nor import Flash
from tests.virtual import rig

COMMAND = [sys.executable, "-c", "from beacon_ota.cli import main; main()", "virtual"]

LOOP = "import time\nprint('ready')\nwhile True:\n    time.sleep(1)\n"


def image(tmp_path, main: str, name="flash.bin"):
    path = tmp_path / name
    path.write_bytes(rig.image({"main.py": main}, {"site": b"hall"}))
    return path


def command(*args, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*COMMAND, *map(str, args)], capture_output=True, text=True, timeout=60, **options
    )


def test_run_shows_the_console_until_a_text(tmp_path):
    done = command("run", image(tmp_path, LOOP), "--until", "ready")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ready\n"
    assert "boot 1 from ota_0, reset cause 1" in done.stderr
    assert "boot 1 ended: power" in done.stderr


def test_run_keeps_what_was_written(tmp_path):
    main = (
        "import esp32\nn = esp32.NVS('beacon')\n"
        "try:\n    i = n.get_i32('i')\nexcept OSError:\n    i = 0\n"
        "n.set_i32('i', i + 1)\nprint('count', i, '.')\nimport time\ntime.sleep(60)\n"
    )
    path = image(tmp_path, main)
    assert "count 0" in command("run", path, "--until", ".").stdout
    assert "count 1" in command("run", path, "--until", ".").stdout


def test_run_json(tmp_path):
    main = LOOP.replace(
        "print('ready')", "import machine\nif machine.reset_cause() == 1: machine.reset()"
    )
    done = command("run", image(tmp_path, main), "--for", "1", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["phase"] == "main.py"
    assert [boot["ended"] for boot in found["boots"]] == ["reset", "power"]
    assert [boot["cause"] for boot in found["boots"]] == [1, 2]


def refused(capsys, *args) -> tuple[int, str]:
    """Run a command in this process that ends with an error."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["virtual", *map(str, args)])
    return int(caught.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize(
    ("main", "args", "code"),
    [
        ("raise ValueError", ("--for", "1"), "beacon_repl"),
        (LOOP, ("--until", "never", "--for", "0.5"), "not_printed"),
        (LOOP, ("--wifi", ":x"), "wifi_option"),
        (LOOP, ("--host", "name"), "pair_option"),
        (LOOP, ("--host", "name=a:b"), "host_option"),
        (LOOP, ("--mac", "12"), "mac_option"),
    ],
)
def test_run_refuses_and_reports(tmp_path, capsys, main, args, code):
    exit_code, errors = refused(capsys, "run", image(tmp_path, main), *args)
    assert exit_code == (2 if "option" in code else 1)
    assert code in errors


def test_run_of_something_else(tmp_path, capsys):
    path = tmp_path / "other.bin"
    path.write_bytes(b"no flash image")
    assert "flash_size" in refused(capsys, "run", path)[1]
    path.write_bytes(b"\xff" * 0x400000)
    exit_code, errors = refused(capsys, "run", path)
    assert exit_code == 1
    assert "not_bootable" in errors


def test_one_file_one_beacon(tmp_path, capsys):
    path = image(tmp_path, LOOP)
    flash = Flash.open(path)
    exit_code, errors = refused(capsys, "run", path)
    assert exit_code == 2
    assert "flash_busy" in errors
    flash.close()


def test_interrupt_is_a_power_cut(tmp_path):
    process = subprocess.Popen(
        [*COMMAND, "run", str(image(tmp_path, LOOP))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "ended: power" in errors


def test_run_connects(tmp_path):
    main = (
        "import network, time, socket\nw = network.WLAN(0)\nw.active(True)\n"
        "w.connect('office', 'a:b')\n"
        "while not w.isconnected():\n    time.sleep_ms(10)\n"
        "socket.getaddrinfo('orchestrator.local', 8080)\nprint('connected')\n" + LOOP
    )
    args = (
        "--wifi",
        "office:a:b",
        "--host",
        "orchestrator.local=127.0.0.1:1",
        "--time-scale",
        "10",
    )
    done = command("run", image(tmp_path, main), *args, "--until", "connected")
    assert done.returncode == 0, done.stderr


def test_fleet(tmp_path):
    main = (
        "import esp32, time\nn = esp32.NVS('beacon')\nb = bytearray(40)\n"
        "for k in ('beacon_id', 'site', 'orch_url'):\n"
        "    print(bytes(b[:n.get_blob(k, b)]).decode())\n"
        "while True:\n    time.sleep(1)\n"
    )
    roster = tmp_path / "roster.json"
    images = [image(tmp_path, main, "a.bin"), image(tmp_path, main, "b.bin")]
    url = "orch_url=http://o.local:8080"
    args = ("--for", "1.5", "--json", "--roster", roster, "--nvs", url)
    done = command("fleet", 5, *images, *args)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["beacon"] for row in rows] == [f"virtual-{n}" for n in range(1, 6)]
    assert {row["phase"] for row in rows} == {"main.py"}
    members = json.loads(roster.read_text())
    assert len({member["beacon_key"] for member in members}) == 5
    assert [member["image"] for member in members] == ["a.bin", "b.bin", "a.bin", "b.bin", "a.bin"]
    assert stat.S_IMODE(os.stat(roster).st_mode) == 0o600
    assert images[0].read_bytes() == rig.image({"main.py": main}, {"site": b"hall"})

    with VirtualFleet(images, 2, settings={"orch_url": "http://o.local:8080"}) as fleet:
        fleet.power_on()
        for beacon, member in zip(fleet.beacons, fleet.members, strict=True):
            beacon.wait_for(lambda b=beacon: b.console.count("\n") == 3, rig.WAIT)
            assert beacon.console.split() == [member.beacon_id, "hall", "http://o.local:8080"]
            assert beacon.setting("beacon_key") == member.beacon_key
            assert beacon.mac == member.mac == mac_from_name(member.beacon_id)


def test_fleet_shows_a_table(tmp_path):
    done = command(
        "fleet", 2, image(tmp_path, LOOP), "--for", "1", env={**os.environ, "COLUMNS": "120"}
    )
    assert done.returncode == 0, done.stderr
    assert "virtual-2" in done.stdout
    assert "main.py" in done.stdout


@pytest.mark.parametrize(
    ("content", "values", "code"),
    [
        (b"\xff" * 0x10000, {"site": "x"}, "flash_no_nvs"),
        (None, {"beacon_key": "12"}, "setting_value"),
        (None, {f"k{i}": "x" * 120 for i in range(120)}, "nvs_full"),
    ],
)
def test_personalise_refuses(content, values, code):
    from beacon_ota.errors import BeaconOtaError

    flash = Flash(content or rig.image({}))
    with pytest.raises(BeaconOtaError) as caught:
        write_settings(flash, values)
    assert caught.value.code == code


def test_virtual_tells_what_it_can_do():
    assert command("--help").returncode == 0


def test_a_signal_presses_the_button(tmp_path):
    main = (
        "import time\nfrom machine import Pin\npin = Pin(9, Pin.IN, Pin.PULL_UP)\n"
        "print('ready')\nwhile pin.value():\n    time.sleep_ms(5)\nprint('pressed')\n"
        "while not pin.value():\n    time.sleep_ms(5)\nprint('let go')\n"
        "time.sleep(60)\n"
    )
    line = [*COMMAND, "run", str(image(tmp_path, main)), "--until", "let go", "--for", "30"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.read() == "pressed\nlet go\n"
    assert process.returncode == 0
