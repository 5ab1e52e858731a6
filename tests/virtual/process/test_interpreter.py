"""What beacon code finds: heap, modules, files, an app in the slot."""

import os
import signal
import subprocess
import sys
import time

import pytest

from beacon_ota.virtual.beacon import VirtualBeacon
from beacon_ota.virtual.flash.nor import Flash
from tests.virtual import rig


def test_boots_again_and_again():
    with rig.running("print('up')") as beacon:
        for _ in range(5):
            assert rig.finish(beacon) == "up\n"
            beacon.power_cut()
            beacon.power_on()
        rig.finish(beacon)
        assert len(beacon.boots) == 6


@pytest.mark.slow
def test_boots_in_no_time():
    times = []
    with rig.running("") as beacon:
        rig.finish(beacon)  # the first one compiles the stand-ins
        for _ in range(5):
            beacon.power_cut()
            start = time.monotonic()
            beacon.power_on()
            rig.finish(beacon)
            times.append(time.monotonic() - start)
    assert min(times) < 0.25  # about 0.02 on an idle machine


@pytest.mark.parametrize("heap", [64 * 1024, 160 * 1024, 300 * 1024])
def test_beacon_code_gets_the_heap_it_was_promised(heap):
    (free,) = rig.printed("import gc; gc.collect(); print(gc.mem_free())", heap=heap)
    assert heap - 8192 < int(free) <= heap + 512


def test_the_heap_has_an_end():
    lines = rig.printed(
        "try:\n    x = bytearray(170_000)\nexcept MemoryError:\n    print('full')\n"
        "x = bytearray(100_000)\nprint(len(x))"
    )
    assert lines == ["full", "100000"]


def test_the_line_survives_a_full_heap():
    """Whatever fails for want of memory, later calls get their own answers."""
    main = (
        "import esp32, gc\n"
        "n = esp32.NVS('t')\n"
        "n.set_blob('big', bytes(range(256)) * 10)\n"
        "hold = []\nsize = 4096\n"
        "while size > 512:\n"
        "    try:\n        hold.append(bytearray(size))\n"
        "    except MemoryError:\n        size //= 2\n"
        "failed = 0\n"
        "for i in range(20):\n"
        "    try:\n        n.get_blob('big', hold[0])\n"
        "    except MemoryError:\n        failed += 1\n"
        "del hold[1:]\ngc.collect()\n"
        "n.set_i32('i', 7)\n"
        "print(failed, n.get_i32('i'), n.get_blob('big', hold[0]), hold[0][255])\n"
    )
    assert rig.printed(main) == ["20 7 2560 255"]


def test_the_high_water_mark_of_the_heap():
    main = (
        "import time, gc\n"
        "x = bytearray(30_000)\ntime.sleep_ms(1)\ndel x\n"
        "y = [bytes(100) for i in range(600)]\ny = None\ntime.sleep_ms(1)\n"
    )
    with rig.running(main, heap_watch=True) as beacon:
        rig.finish(beacon)
        assert 30_000 < beacon.boots[0].heap_peak < 45_000


def test_what_can_be_imported():
    names = [
        "asyncio",
        "socket",
        "ssl",
        "hashlib",
        "cryptolib",
        "deflate",
        "json",
        "struct",
        "binascii",
        "machine",
        "network",
        "bluetooth",
        "esp32",
        "vfs",
        "os",
        "time",
        "select",
        "_thread",
        "gc",
        "sys",
        "micropython",
        "collections",
        "errno",
        "io",
        "math",
        "random",
        "re",
        "array",
        "heapq",
        "platform",
        "requests",
    ]
    missing = [
        "termios",
        "argparse",
        "ffi",
        "_chip",
        "_start",
        "esp",
        "btree",
        "functools",
        "hmac",
        "logging",
        "typing",
    ]
    lines = rig.printed(
        f"for name in {[*names, *missing]!r}:\n"
        "    try:\n        __import__(name)\n"
        "    except ImportError:\n        print(name)"
    )
    assert lines == missing


def test_identity():
    lines = rig.printed(
        "import sys, os, machine\n"
        "print(sys.platform, os.uname().sysname, 'ESP32C3' in os.uname().machine)\n"
        "print(machine.unique_id(), machine.freq(), sys.implementation.name)\n"
        "print(hasattr(os, 'system'), hasattr(os, 'getenv'), hasattr(sys, 'atexit'))",
        mac=b"\x01\x02\x03\x04\x05\x06",
    )
    assert lines == [
        "esp32 esp32 True",
        "b'\\x01\\x02\\x03\\x04\\x05\\x06' 160000000 micropython",
        "False False False",
    ]


def test_the_old_names_lead_to_the_stand_ins():
    lines = rig.printed(
        "import utime, uselect, usocket, uos, time, select, socket, os\n"
        "print(utime is time, uselect is select, usocket is socket, uos is os)\n"
        "import umachine, machine\nprint(umachine is machine)"
    )
    assert lines == ["True True True True", "True"]


def test_the_host_is_out_of_reach():
    lines = rig.printed(
        "import os, vfs, sys\n"
        "print(sorted(os.listdir('/')), os.getcwd(), sys.path)\n"
        "for f in (lambda: open('/etc/hostname'), lambda: vfs.VfsPosix, lambda: os.VfsPosix):\n"
        "    try:\n        f()\n        print('reached')\n"
        "    except (OSError, AttributeError):\n        print('no')"
    )
    assert lines == ["['main.py'] / ['', '.frozen', '/lib']", "no", "no", "no"]


def test_cryptolib_has_two_modes():
    lines = rig.printed(
        "import cryptolib\n"
        "for mode in (1, 2, 6):\n"
        "    try:\n"
        "        print(len(cryptolib.aes(bytes(16), mode, bytes(16)).encrypt(bytes(16))))\n"
        "    except ValueError:\n        print('no')"
    )
    assert lines == ["16", "16", "no"]


def test_relative_imports_in_packages():
    files = {
        "main.py": "import pack\nfrom pack import one\nfrom pack.sub.deep import value\n"
        "print(pack.name, one.two.name, value, one.late())",
    }
    tree = {
        "pack/__init__.py": "from .one import name\n",
        "pack/one.py": "from . import two\nfrom .two import name\n"
        "def late():\n    from .sub import deep\n    return deep.up\n",
        "pack/two.py": "name = 'two'\n",
        "pack/sub/__init__.py": "",
        "pack/sub/deep.py": "from ..two import name as up\nfrom .. import one\nvalue = one.name\n",
    }
    assert run_tree({**files, **tree}) == ["two two two two"]


def run_tree(files: dict[str, str]) -> list[str]:
    from littlefs import LittleFS

    vfs = rig.table().find_name("vfs")
    assert vfs is not None
    fs = LittleFS(block_size=4096, block_count=vfs.size // 4096, disk_version=0x00020000)
    for name, content in files.items():
        folder = name.rpartition("/")[0]
        if folder:
            fs.makedirs(folder, exist_ok=True)
        with fs.open(name, "w") as file:
            file.write(content)
    content = bytearray(rig.image(None))
    content[vfs.offset : vfs.end] = fs.context.buffer
    with VirtualBeacon(Flash(bytes(content))) as beacon:
        beacon.power_on()
        return rig.finish(beacon).splitlines()


def test_an_app_behind_the_core_is_mounted_from_the_slot():
    tail = rig.littlefs({"hello.py": "print('hello from the slot')\n"}, 0x4000)
    offset = -(-len(rig.app()) // 4096) * 4096
    content = bytearray(
        rig.image(
            {
                "main.py": "import vfs, sys\nfrom esp32 import Partition\n"
                f"START = {offset}\n"
                "class Tail:\n"
                "    def __init__(self):\n        self.p = Partition(Partition.RUNNING)\n"
                "    def readblocks(self, n, buf, off=0):\n"
                "        self.p.readblocks(0, buf, START + n * 4096 + off)\n"
                "    def writeblocks(self, *a):\n        raise OSError(30)\n"
                "    def ioctl(self, op, arg):\n"
                "        return {4: 4, 5: 4096}.get(op, 0)\n"
                "vfs.mount(vfs.VfsLfs2(Tail()), '/app', readonly=True)\n"
                "sys.path.insert(0, '/app')\nimport hello\n"
            }
        )
    )
    content[0x10000 + offset : 0x10000 + offset + len(tail)] = tail
    with VirtualBeacon(Flash(bytes(content))) as beacon:
        beacon.power_on()
        assert rig.finish(beacon) == "hello from the slot\n"


def test_files_written_by_the_beacon_last():
    main = (
        "import os\n"
        "try:\n    print(open('/note').read())\n"
        "except OSError:\n"
        "    f = open('/note', 'w')\n    f.write('kept')\n    f.close()\n    print('written')\n"
    )
    with rig.running(main) as beacon:
        assert rig.finish(beacon) == "written\n"
        beacon.power_cut()
        beacon.power_on()
        assert rig.finish(beacon) == "kept\n"


def test_long_output_is_kept_to_its_end():
    with rig.running("for i in range(5000):\n    print('line', i)\nprint('\\u00fcber')") as beacon:
        console = rig.finish(beacon)
        assert console.startswith("line 0\nline 1\n")
        assert console.endswith("line 4999\nüber\n")


def test_an_interpreter_that_dies_is_a_crash():
    with rig.running("import time\nprint('up')\ntime.sleep(60)") as beacon:
        beacon.wait_for(lambda: "up" in beacon.console, rig.WAIT)
        assert beacon.process is not None
        os.kill(beacon.process, signal.SIGSEGV)
        beacon.wait_for(lambda: len(beacon.boots) == 2, rig.WAIT)
        assert beacon.boots[0].ended == "crash"
        assert beacon.boots[1].cause == 2


@pytest.mark.parametrize("busy", ["time.sleep(600)", "while True: pass"])
def test_interpreters_end_with_their_supervisor(busy):
    script = (
        "import os\n"
        "from tests.virtual import rig\n"
        f"with rig.running('import time\\nprint(1)\\n{busy}') as beacon:\n"
        "    beacon.wait_for(lambda: beacon.console, 30)\n"
        "    print(beacon.process, flush=True)\n"
        "    os._exit(9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    pid = int(done.stdout)
    deadline = time.monotonic() + rig.WAIT
    while _alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def test_closing_twice_and_using_a_closed_beacon():
    from beacon_ota.errors import ReachError

    flash = Flash(rig.image({"main.py": ""}))
    beacon = VirtualBeacon(flash)
    beacon.close()
    beacon.close()
    with pytest.raises(ReachError) as caught:
        beacon.power_on()
    assert caught.value.code == "beacon_closed"


def test_a_timeout_tells_what_was_seen():
    from beacon_ota.errors import ReachError

    with rig.running("print('so far')\nimport time\ntime.sleep(60)") as beacon:
        beacon.wait_for(lambda: "so far\n" in beacon.console, rig.WAIT)
        with pytest.raises(ReachError, match="so far") as caught:
            beacon.wait_for(lambda: False, 0.1, "the impossible")
        assert caught.value.code == "beacon_timeout"
        assert "the impossible" in caught.value.message
