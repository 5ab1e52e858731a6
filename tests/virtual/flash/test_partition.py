"""`esp32.Partition` and `esp32.NVS` as beacon code sees them, numbers of errors included."""

import pytest

from beacon_ota.images import partitions
from beacon_ota.virtual.beacon import VirtualBeacon
from beacon_ota.virtual.flash.nor import Flash, PowerCutPoint
from tests.virtual import rig

TRY = """
from esp32 import Partition, NVS
def t(f, *a, **k):
    try:
        print(f(*a, **k))
    except Exception as e:
        print(type(e).__name__, e.args)
other = Partition("ota_1")
buf = bytearray(4096)
"""


def run(code: str, **options) -> list[str]:
    return rig.printed(TRY + code, **options)


def test_info_and_find():
    lines = run(
        "t(Partition(Partition.RUNNING).info)\n"
        "t(Partition(Partition.BOOT).info)\n"
        "t(lambda: [p.info()[4] for p in Partition.find(1)])\n"
        "t(lambda: [p.info()[4] for p in Partition.find(Partition.TYPE_APP)])\n"
        "t(lambda: [p.info()[4] for p in Partition.find(0xff)][-1])\n"
        "t(lambda: [p.info()[2] for p in Partition.find(Partition.TYPE_DATA, subtype=0)])\n"
        "t(lambda: Partition.find(1, label='vfs')[0].ioctl(4, 0))\n"
        "t(lambda: Partition.find(0xff, 0))\n"
        "t(lambda: Partition.find(0, 0x15))\n"
        "t(Partition, 'nope')\nt(Partition, 7)\nt(repr, other)\n"
    )
    assert lines == [
        "(0, 16, 65536, 1835008, 'ota_0', False)",
        "(0, 16, 65536, 1835008, 'ota_0', False)",
        "['nvs', 'otadata', 'phy_init', 'vfs']",
        "['ota_0', 'ota_1']",
        "vfs",
        "[53248]",
        "112",
        "[]",
        "[]",
        "OSError (2,)",
        "ValueError ()",
        "<Partition type=0, subtype=17, address=1900544, size=1835008, label=ota_1, encrypted=0>",
    ]


def test_two_and_three_arguments():
    lines = run(
        "small = bytearray(4)\n"
        "other.writeblocks(1, b'\\x0f' * 4096)\n"
        "other.writeblocks(1, b'\\xf3\\xff', 2)\n"
        "other.readblocks(1, small)\nprint(small)\n"
        "other.writeblocks(1, b'\\xff' * 4096)\n"
        "other.readblocks(1, small)\nprint(small)\n"
        "other.writeblocks(0, b'abc', 4097)\n"
        "other.readblocks(0, small, 4096)\nprint(small)\n"
        "t(other.writeblocks, 1, b'x' * 100)\n"
        "t(other.writeblocks, 0, b'', 5)\n"
        "t(other.writeblocks, 0, bytearray(), 5)\n"
        "t(other.ioctl, 6, 1)\nother.readblocks(1, small)\nprint(small)\n"
    )
    assert lines == [
        "bytearray(b'\\x0f\\x0f\\x03\\x0f')",
        "bytearray(b'\\xff\\xff\\xff\\xff')",
        "bytearray(b'\\xffabc')",
        "OSError (-260, 'ESP_ERR_INVALID_SIZE')",
        "None",
        "OSError (-258, 'ESP_ERR_INVALID_ARG')",
        "0",
        "bytearray(b'\\xff\\xff\\xff\\xff')",
    ]


def test_bounds():
    lines = run(
        "n = other.ioctl(4, 0)\n"
        "t(other.readblocks, n, bytearray(1))\n"
        "t(other.readblocks, n, bytearray(0))\n"
        "t(other.readblocks, n + 1, buf)\n"
        "t(other.readblocks, n - 1, bytearray(4097))\n"
        "t(other.readblocks, -1, buf)\n"
        "t(other.writeblocks, n, buf)\n"
        "t(other.writeblocks, n + 1, buf, 0)\n"
        "t(other.ioctl, 6, n)\n"
        "t(other.readblocks, 0, b'read only')\n"
    )
    assert lines == [
        "OSError (-260, 'ESP_ERR_INVALID_SIZE')",
        "None",
        "OSError (-258, 'ESP_ERR_INVALID_ARG')",
        "OSError (-260, 'ESP_ERR_INVALID_SIZE')",
        "OSError (-258, 'ESP_ERR_INVALID_ARG')",
        "OSError (-260, 'ESP_ERR_INVALID_SIZE')",
        "OSError (-258, 'ESP_ERR_INVALID_ARG')",
        "OSError (-260, 'ESP_ERR_INVALID_SIZE')",
        "TypeError ('object with buffer protocol required',)",
    ]


def test_block_sizes():
    lines = run(
        "p = Partition('ota_1', 512)\n"
        "t(p.ioctl, 4, 0)\nt(p.ioctl, 5, 0)\nt(p.ioctl, 6, 0)\nt(p.ioctl, 99, 0)\n"
        "other.writeblocks(0, b'a' * 4096)\n"
        "p.writeblocks(1, b'b' * 512)\n"
        "other.readblocks(0, buf)\n"
        "print(buf[:512] == b'a' * 512, buf[512:1024] == b'b' * 512, buf[1024:] == b'a' * 3072)\n"
        "p.writeblocks(7, b'c' * 1024)\n"
        "big = bytearray(8192)\nother.readblocks(0, big)\n"
        "print(big[3584:4608] == b'c' * 1024, big[4608:] == b'\\xff' * 3584)\n"
    )
    assert lines == ["3584", "512", "-22", "None", "True True True", "True True"]


def test_large_reads_and_writes():
    lines = run(
        "data = bytes(range(256)) * 80\n"
        "other.writeblocks(0, data, 100)\n"
        "back = bytearray(len(data))\n"
        "other.readblocks(0, back, 100)\nprint(back == data)\n"
    )
    assert lines == ["True"]


def test_read_only_partitions():
    rows = list(rig.table())
    rows[2] = partitions.Partition("phy_init", 1, 1, 0xF000, 0x1000, readonly=True)
    lines = run(
        "p = Partition('phy_init')\nt(p.writeblocks, 0, buf)\nt(p.ioctl, 6, 0)\n"
        "t(p.writeblocks, 0, b'x', 0)\nt(p.readblocks, 0, buf)\n",
        layout=partitions.Table(tuple(rows)),
    )
    assert lines == ["OSError (-269, 'ESP_ERR_NOT_ALLOWED')"] * 3 + ["None"]


def test_the_port_adds_a_vfs_where_the_table_has_none():
    rows = tuple(row for row in rig.table() if row.name != "vfs")
    content = bytearray(rig.image(None, layout=partitions.Table(rows)))
    files = {"main.py": TRY + "t(lambda: Partition.find(1)[-1].info())\n"}
    content[0x390000:] = rig.littlefs(files, 0x70000)
    with VirtualBeacon(Flash(bytes(content))) as beacon:
        beacon.power_on()
        assert rig.finish(beacon) == "(1, 129, 3735552, 458752, 'vfs', False)\n"


def test_set_boot_and_friends():
    lines = run(
        "t(other.set_boot)\n"
        "t(Partition('nvs').set_boot)\n"
        "t(lambda: Partition(1).get_next_update().info()[4])\n"
        "t(lambda: other.get_next_update().info()[4])\n"
        "t(Partition.mark_app_valid_cancel_rollback)\n"
    )
    assert lines == [
        "OSError (-5379, 'ESP_ERR_OTA_VALIDATE_FAILED')",
        "OSError (-5379, 'ESP_ERR_OTA_VALIDATE_FAILED')",
        "ota_1",
        "ota_0",
        "None",
    ]


def test_a_table_without_ota():
    rows = (
        partitions.Partition("nvs", 1, 2, 0x9000, 0x4000),
        partitions.Partition("factory", 0, 0, 0x10000, 0x100000),
        partitions.Partition("vfs", 1, 0x83, 0x110000, 0x40000),
    )
    layout = partitions.Table(rows)
    content = bytearray(rig.image(None, layout=layout))
    content[0x10000 : 0x10000 + len(rig.app())] = rig.app()
    code = (
        TRY.replace("other = Partition('ota_1')", "").replace('other = Partition("ota_1")', "")
        + "me = Partition(Partition.RUNNING)\nprint(me.info()[4])\n"
        "t(Partition, Partition.BOOT)\nt(me.get_next_update)\n"
        "t(Partition.mark_app_valid_cancel_rollback)\nt(me.set_boot)\n"
    )
    content[0x110000:0x150000] = rig.littlefs({"main.py": code}, 0x40000)
    with VirtualBeacon(Flash(bytes(content))) as beacon:
        beacon.power_on()
        assert rig.finish(beacon).splitlines() == [
            "factory",
            "OSError (2,)",
            "OSError (2,)",
            "OSError (-261, 'ESP_ERR_NOT_FOUND')",
            "OSError (-261, 'ESP_ERR_NOT_FOUND')",
        ]


TRIAL = """
import machine
from esp32 import Partition, NVS
n = NVS("t")
try:
    step = n.get_i32("step")
except OSError:
    step = 0
n.set_i32("step", step + 1)
run = Partition(Partition.RUNNING)
print(step, run.info()[4])
if step == 0:
    other = run.get_next_update()
    other.set_boot()
    machine.reset()
if step == %d:
    machine.reset()
if step == %d:
    Partition.mark_app_valid_cancel_rollback()
    machine.reset()
"""


def slots(main: str, boots: int) -> list[str | None]:
    with rig.running(main, both=True) as beacon:
        beacon.wait_for(lambda: len(beacon.boots) >= boots and beacon.phase == "repl", rig.WAIT)
        return [boot.slot for boot in beacon.boots]


def test_an_unconfirmed_trial_is_rolled_back():
    assert slots(TRIAL % (1, 99), 3) == ["ota_0", "ota_1", "ota_0"]


def test_a_confirmed_trial_stays():
    assert slots(TRIAL % (99, 1), 3) == ["ota_0", "ota_1", "ota_1"]


def test_a_trial_that_hangs_is_rolled_back():
    hang = "if step == 1:\n    machine.WDT(timeout=200)\n    while 1: pass\nif step == 0:"
    main = TRIAL.replace("if step == 0:", hang)
    assert slots(main % (99, 99), 3) == ["ota_0", "ota_1", "ota_0"]


def test_a_panic_in_a_trial_rolls_back():
    main = TRIAL.replace("if step == 0:", "if step == 1:\n    run.ioctl(6, 0)\nif step == 0:")
    assert slots(main % (99, 99), 3) == ["ota_0", "ota_1", "ota_0"]


def test_power_cut_at_any_of_the_beacons_own_operations():
    """The flash is left exactly as it was before that operation; then all goes on."""
    main = (
        "from esp32 import Partition\n"
        "p = Partition('ota_1')\n"
        "for i in range(4):\n"
        "    p.writeblocks(i, bytes((i,)) * 4096)\n"
        "print('done')\n"
    )
    flash = Flash(rig.image({"main.py": main}), record=True)
    with VirtualBeacon(flash) as beacon:
        beacon.power_on()
        rig.finish(beacon)
        start, first = flash.snapshot(), beacon.boots[0].operations
        assert first == 0
        writes = [op.number for op in flash.journal if op.offset >= 0x1D0000]
        assert len(writes) == 8
        for number in (writes[0], writes[3], writes[7]):
            flash.overwrite(0x1D0000, b"\xff" * 0x4000)
            beacon.power_cut()
            base = flash.ops
            flash.cut = PowerCutPoint(base + number - writes[0])
            beacon.power_on()
            beacon.wait_for(lambda: not beacon.powered, rig.WAIT)
            assert beacon.boots[-1].ended == "power"
            assert "done" not in beacon.console
            written = sum(flash.read(0x1D0000 + 4095 + i * 4096, 1) != b"\xff" for i in range(1, 4))
            assert written <= (number - writes[0]) // 2
        beacon.power_on()
        rig.finish(beacon)
        assert flash.snapshot()[0x1D0000:0x1E0000] == start[0x1D0000:0x1E0000]


def test_reported_flash_errors_reach_the_beacon():
    with rig.running(
        TRY + "t(other.writeblocks, 0, buf)\nt(other.writeblocks, 1, buf)\n"
    ) as beacon:
        beacon.flash.faults.fail_erase = {0x1D0}
        beacon.flash.faults.fail_program = {0x1D1}
        assert rig.finish(beacon).splitlines() == ["OSError (-24577, 'ESP_ERR_FLASH_OP_FAIL')"] * 2


def test_bits_that_flip_are_seen_also_later():
    main = (
        TRY
        + "import time\nsmall = bytearray(2)\n"
        + "for i in range(100):\n    other.readblocks(0, small)\n    print(small[0])\n"
        + "    time.sleep_ms(20)\n"
    )
    with rig.running(main) as beacon:
        beacon.wait_for(lambda: "255" in beacon.console, rig.WAIT)
        beacon.flip_bits({0x1D0000: 1})
        beacon.wait_for(lambda: "254" in beacon.console, rig.WAIT)
        beacon.flip_bits({})
        beacon.wait_for(lambda: beacon.console.split()[-1] == "255", rig.WAIT)


def test_flash_takes_its_time():
    main = (
        TRY
        + "import time\na = time.ticks_ms()\nother.writeblocks(0, buf)\nb = time.ticks_ms()\n"
        + "other.writeblocks(0, bytes(256), 0)\nc = time.ticks_ms()\n"
        + "print(time.ticks_diff(b, a), time.ticks_diff(c, b))\n"
    )
    with rig.running(main, timing=True) as beacon:
        sector, page = map(int, rig.finish(beacon).split())
        assert 55 <= sector < 500  # 45 ms to erase, 16 pages of 0.7 ms
        assert page < 50
        assert beacon.flash.busy > 0.056


def test_nvs():
    lines = run(
        "n = NVS('beacon')\n"
        "t(n.get_i32, 'absent')\nt(n.set_i32, 'k', -7)\nt(n.get_i32, 'k')\n"
        "t(n.set_blob, 'b', b'12345')\nt(n.set_blob, 's', 'text')\n"
        "small = bytearray(3)\nt(n.get_blob, 'b', small)\n"
        "t(n.get_blob, 'b', buf)\nprint(buf[:6])\nt(n.get_blob, 's', buf)\nprint(buf[:4])\n"
        "t(n.get_blob, 'b', bytearray())\n"
        "t(n.get_blob, 'k', buf)\nt(n.get_i32, 'b')\n"
        "t(n.set_i32, 'k' * 16, 1)\nt(n.get_i32, 'k' * 16)\nt(NVS, 'n' * 16)\n"
        "t(n.set_i32, 'k', 1 << 31)\n"
        "t(n.set_blob, 'big', bytes(12001))\nt(n.set_blob, 'big', bytes(12000))\n"
        "t(n.erase_key, 'b')\nt(n.erase_key, 'b')\nt(n.commit)\n",
    )
    assert lines == [
        "OSError (-4354, 'ESP_ERR_NVS_NOT_FOUND')",
        "None",
        "-7",
        "None",
        "None",
        "OSError (-4364, 'ESP_ERR_NVS_INVALID_LENGTH')",
        "5",
        "bytearray(b'12345\\x00')",
        "4",
        "bytearray(b'text')",
        "5",
        "OSError (-4354, 'ESP_ERR_NVS_NOT_FOUND')",
        "OSError (-4354, 'ESP_ERR_NVS_NOT_FOUND')",
        "OSError (-4361, 'ESP_ERR_NVS_KEY_TOO_LONG')",
        "OSError (-4354, 'ESP_ERR_NVS_NOT_FOUND')",
        "OSError (-4361, 'ESP_ERR_NVS_KEY_TOO_LONG')",
        "OverflowError ('overflow converting long int to machine word',)",
        "OSError (-4366, 'ESP_ERR_NVS_VALUE_TOO_LONG')",
        "OSError (-4357, 'ESP_ERR_NVS_NOT_ENOUGH_SPACE')",
        "None",
        "OSError (-4354, 'ESP_ERR_NVS_NOT_FOUND')",
        "None",
    ]


def test_settings_of_the_image_are_there_and_seen_from_outside():
    settings = {"wifi_ssid": b"office", "utc_off": 60}
    main = (
        TRY + "n = NVS('beacon')\nt(n.get_blob, 'wifi_ssid', buf)\nt(n.get_i32, 'utc_off')\n"
        "n.set_i32('utc_off', 120)\n"
    )
    with rig.running(main, settings=settings) as beacon:
        assert rig.finish(beacon).split() == ["6", "60"]
        assert beacon.setting("utc_off") == 120
        beacon.power_cut()
        assert beacon.setting("wifi_ssid") == b"office"
        assert beacon.settings() == {("beacon", "wifi_ssid"): b"office", ("beacon", "utc_off"): 120}


@pytest.mark.parametrize("fault", ["program", "erase"])
def test_nvs_without_working_flash(fault):
    flash = Flash(rig.image({"main.py": TRY + "t(NVS, 'beacon')\n"}))
    flash.overwrite(0x9000, bytes(0x4000))
    getattr(flash.faults, f"fail_{fault}").update(range(9, 13))
    with VirtualBeacon(flash) as beacon:
        beacon.power_on()
        assert rig.finish(beacon).startswith("OSError (-")
