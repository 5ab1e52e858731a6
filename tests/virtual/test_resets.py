"""What the next boot is told, for every way in which one ends."""

import os
import subprocess
import sys

import pytest

from beacon_ota.fleet import fleet
from beacon_ota.virtual.beacon import BOOTS_KEPT, VirtualBeacon
from beacon_ota.virtual.flash.nor import Flash, PowerCutPoint
from tests.virtual import rig

# The first boot does what the test wants, the second prints why it was started.
ONCE = """
import machine
rtc = machine.RTC()
if rtc.memory() == b"":
    rtc.memory(b"again")
    %s
print("cause", machine.reset_cause())
"""


def again(action: str, **options) -> VirtualBeacon:
    lines = "\n    ".join(action.splitlines())
    with rig.running(ONCE % lines, **options) as beacon:
        beacon.wait_for(lambda: len(beacon.boots) == 2 and beacon.phase == "repl", rig.WAIT)
        return beacon


def test_power_on():
    assert rig.printed("import machine; print(machine.reset_cause())") == ["1"]


def test_machine_reset():
    beacon = again("machine.reset()")
    assert "cause 2" in beacon.console
    assert [boot.ended for boot in beacon.boots[:1]] == ["reset"]


def test_panic_on_a_write_to_the_running_slot():
    beacon = again("import esp32\nesp32.Partition(esp32.Partition.RUNNING).writeblocks(0, b'x', 0)")
    assert "cause 2" in beacon.console
    assert beacon.boots[0].ended == "panic"


def test_panic_on_an_erase_of_the_running_slot():
    beacon = again("import esp32\nesp32.Partition(esp32.Partition.RUNNING).ioctl(6, 3)")
    assert beacon.boots[0].ended == "panic"


def test_watchdog_bites_a_loop():
    beacon = again("machine.WDT(timeout=300)\nwhile True: pass")
    assert "cause 3" in beacon.console
    assert beacon.boots[0].ended == "watchdog"
    assert 0.3 <= beacon.boots[0].duration < 5


def test_watchdog_bites_in_the_repl():
    beacon = again("machine.WDT(timeout=300)\nraise ValueError('main.py ends here')")
    assert "ValueError: main.py ends here" in beacon.boots[0].console
    assert beacon.boots[0].phase == "repl"
    assert beacon.boots[0].ended == "watchdog"


def test_watchdog_bites_while_python_waits():
    beacon = again("import time\nmachine.WDT(timeout=200)\ntime.sleep(60)")
    assert beacon.boots[0].ended == "watchdog"


def test_a_fed_watchdog_does_not_bite():
    lines = rig.printed(
        "import machine, time\n"
        "wdt = machine.WDT(timeout=400)\n"
        "for i in range(10):\n"
        "    time.sleep_ms(80)\n"
        "    wdt.feed()\n"
        "print('alive')"
    )
    assert lines == ["alive"]


def test_a_watchdog_does_not_bite_for_a_busy_machine():
    """Bites after 50 ms of real time; fed every few, of which this machine gives it a fifth."""
    main = (
        "import machine, time\n"
        "wdt = machine.WDT(timeout=10000)\n"
        "for i in range(40):\n"
        "    for j in range(300000): pass\n"
        "    wdt.feed()\n"
        "print('well fed')\n"
        "time.sleep(1000)\n"
    )
    burn = [sys.executable, "-c", "while True: pass"]
    busy = [
        subprocess.Popen(burn, start_new_session=True) for _ in range(4 * (os.cpu_count() or 1))
    ]
    try:
        with rig.running(main, scale=200) as beacon:
            beacon.wait_for(lambda: "well fed" in beacon.boots[0].console, 4 * rig.WAIT)
            for one in busy:
                one.kill()
            beacon.wait_for(lambda: len(beacon.boots) > 1, rig.WAIT)
            assert beacon.boots[0].ended == "watchdog", "and hungry"
    finally:
        for one in busy:
            one.kill()
            one.wait()


def test_watchdog_survives_a_soft_reset():
    main = (
        "import machine, time\n"
        "print('start', machine.reset_cause())\n"
        "if machine.reset_cause() == 1:\n"
        "    machine.WDT(timeout=400)\n"
        "    machine.soft_reset()\n"
        "time.sleep(60)\n"
    )
    with rig.running(main) as beacon:
        beacon.wait_for(lambda: len(beacon.boots) == 2, rig.WAIT)
        first = beacon.boots[0]
        assert first.soft_resets == 1
        assert first.ended == "watchdog"
        assert first.console.splitlines() == ["start 1", "start 5"]


@pytest.mark.parametrize("refused", ["id=1", "timeout=0", "timeout=-1"])
def test_watchdog_refuses(refused):
    lines = rig.printed(
        f"import machine\ntry:\n    machine.WDT({refused})\nexcept ValueError:\n    print('no')"
    )
    assert lines == ["no"]


def test_soft_reset_is_no_boot():
    main = (
        "import machine, os, esp32, time\n"
        "n = esp32.NVS('t')\n"
        "try:\n    i = n.get_i32('i')\nexcept OSError:\n    i = 0\n"
        "n.set_i32('i', i + 1)\n"
        "print(i, machine.reset_cause())\n"
        "if i < 2:\n    raise SystemExit\n"
    )
    with rig.running(main) as beacon:
        assert rig.finish(beacon).splitlines() == ["0 1", "1 5", "2 5"]
        assert len(beacon.boots) == 1
        assert beacon.boots[0].soft_resets == 2


def test_reset_pin_is_told_like_power_on_and_keeps_memory():
    with rig.running(ONCE % "pass") as beacon:
        rig.finish(beacon)
        beacon.reset()
        beacon.wait_for(lambda: len(beacon.boots) == 2 and beacon.phase == "repl", rig.WAIT)
        assert beacon.boots[0].ended == "pin"
        assert "cause 1" in beacon.console
        assert beacon.rtc.memory == b"again"


def test_power_cut_forgets_memory_and_time():
    main = (
        "import machine, time\n"
        "print(machine.RTC().memory(), time.gmtime()[0])\n"
        "machine.RTC().memory(b'kept')\n"
        "machine.RTC().datetime((2026, 3, 4, 0, 5, 6, 7, 0))\n"
    )
    with rig.running(main) as beacon:
        rig.finish(beacon)
        beacon.reset()
        beacon.wait_for(lambda: len(beacon.boots) == 2 and beacon.phase == "repl", rig.WAIT)
        assert beacon.console == "b'kept' 2026\n"
        beacon.power_cut()
        assert not beacon.powered
        assert beacon.boots[1].ended == "power"
        beacon.power_on()
        beacon.wait_for(lambda: len(beacon.boots) == 3 and beacon.phase == "repl", rig.WAIT)
        assert beacon.console == "b'' 2000\n"


def test_deep_sleep_wakes_without_bootloader():
    beacon = again("machine.deepsleep(100)")
    assert "cause 4" in beacon.console
    assert beacon.boots[0].ended == "deepsleep"
    assert beacon.boots[1].log == ("wake",)


def test_power_can_be_cut_in_deep_sleep():
    with rig.running("import machine; machine.deepsleep()") as beacon:
        beacon.wait_for(lambda: beacon.boot and beacon.boot.ended == "deepsleep", rig.WAIT)
        beacon.power_cut()
        assert not beacon.powered


def test_an_exception_in_boot_skips_main():
    with rig.running("print('main')", boot="raise RuntimeError('in boot')") as beacon:
        console = rig.finish(beacon)
        assert "RuntimeError: in boot" in console
        assert "main\n" not in console


def test_a_blank_vfs_is_formatted():
    with VirtualBeacon(Flash(rig.image(None))) as beacon:
        beacon.power_on()
        assert "Performing initial setup" in rig.finish(beacon)
        beacon.reset()
        beacon.wait_for(lambda: len(beacon.boots) == 2 and beacon.phase == "repl", rig.WAIT)
        assert beacon.console == ""


def test_a_corrupt_vfs_ends_in_the_endless_loop():
    content = bytearray(rig.image({"main.py": "print('main')"}))
    vfs = rig.table().find_name("vfs")
    assert vfs is not None
    start = vfs.offset
    content[start : start + 0x2000] = b"\x5a" * 0x2000
    with VirtualBeacon(Flash(bytes(content)), scale=20) as beacon:
        beacon.power_on()
        beacon.wait_for(lambda: beacon.console.count("corrupted") >= 2, rig.WAIT)
        assert beacon.phase == "corrupt"


def test_blank_flash_is_not_bootable():
    with VirtualBeacon(Flash.blank()) as beacon:
        beacon.power_on()
        beacon.wait_for(lambda: not beacon.powered, rig.WAIT)
        assert beacon.boots[-1].ended == "unbootable"
        assert beacon.boots[-1].slot is None


@pytest.mark.parametrize("number", [0, 1])
def test_power_may_fail_in_the_bootloader(number):
    flash = Flash(rig.image({"main.py": "print('up')"}))
    flash.cut = PowerCutPoint(number)
    with VirtualBeacon(flash) as beacon:
        beacon.power_on()
        beacon.wait_for(lambda: not beacon.powered, rig.WAIT)
        assert beacon.boots[0].ended == "power"
        assert beacon.boots[0].slot is None
        beacon.power_on()
        assert rig.finish(beacon) == "up\n"


def test_power_may_fail_in_the_recovery_of_nvs():
    content = bytearray(rig.image({"main.py": "print('up')"}))
    content[0x9000:0xA000] = bytes(0x1000)
    content[0xA000:0xD000] = bytes(0x3000)
    flash = Flash(bytes(content))
    flash.cut = PowerCutPoint(2, "inside", seed=1)  # after two operations of the bootloader
    with VirtualBeacon(flash) as beacon:
        beacon.power_on()
        beacon.wait_for(lambda: not beacon.powered, rig.WAIT)
        assert beacon.boots[0].ended == "power"
        beacon.power_on()
        assert rig.finish(beacon) == "up\n"


def test_wifi_and_bluetooth_need_modem_sleep():
    beacon = again(
        "import network, bluetooth\nw = network.WLAN(0)\nw.active(True)\n"
        "w.config(pm=w.PM_NONE)\nw.config(pm=w.PM_PERFORMANCE)\n"
        "bluetooth.BLE().active(True)\nw.config(pm=w.PM_NONE)"
    )
    assert beacon.boots[0].ended == "panic"
    assert "modem sleep" in beacon.boots[0].detail


def test_boots_of_long_ago_are_forgotten():
    with rig.running("import machine\nprint('up')\nmachine.reset()") as beacon:
        beacon.wait_for(lambda: beacon.boots[-1].number > BOOTS_KEPT + 3, 60, "many boots")
    numbers = [boot.number for boot in beacon.boots]
    assert numbers == list(range(numbers[-1] - BOOTS_KEPT + 1, numbers[-1] + 1))
    assert all("up" in boot.console for boot in beacon.boots[:-1])
    assert fleet.describe_beacon(beacon)["boots"] == numbers[-1]
