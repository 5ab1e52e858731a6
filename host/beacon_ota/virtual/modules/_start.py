# The start between power-on and boot.py: load the stubs from the host, hide the host,
# mount the flash's own file system, then do what the esp32 port does at every start.

import builtins
import gc
import sys

import micropython
import vfs

_HIDDEN = ("termios", "argparse", "_chip", "_start", "_tls")
_MODULES = ("time", "select", "socket", "os", "esp32", "machine", "network", "bluetooth", "_tls")


def run(rpc, bell, wake_in, wake_out, flash):
    import _chip

    _chip.attach(rpc, bell, wake_in, wake_out)
    for name in _MODULES:
        __import__(name)
    _asyncio(sys.modules)
    _replace(_chip)
    _names(_chip)
    gc.collect()
    boot = _chip.call("start", gc.mem_free(), gc.mem_alloc())
    num, den, up, wall, direct, label, _chip.watching = boot
    sys.modules["time"]._setup(num, den, up, wall)
    sys.modules["esp32"]._setup(flash, direct)
    del sys.modules["_chip"], sys.modules["_start"]
    sys.path[:] = ["", ".frozen", "/lib"]
    vfs.umount("/")
    _import(sys.modules)
    _boot(label, _chip)
    _programs(_chip)


# asyncio's task queue is native and stamps tasks with the host's milliseconds. So its core counts
# in those, and it is the length of a sleep that the time scale changes. The part of the current
# millisecond that is gone counts: cut off it would be `scale` milliseconds of the beacon's.
def _asyncio(modules):
    import utime

    time = modules["time"]
    select = modules["select"]

    class clock:
        ticks_ms = utime.ticks_ms
        ticks_diff = utime.ticks_diff

        @staticmethod
        def ticks_add(ticks, ms):
            if ms <= 0:
                return utime.ticks_add(ticks, ms)
            now = utime.ticks_us()
            gone = now % 1000
            return utime.ticks_add(now // 1000, -(-(time._shrink(ms * 1000) + gone) // 1000))

    class poller:
        poll = select.HostPoll
        POLLIN = select.POLLIN
        POLLOUT = select.POLLOUT

    modules["time"] = clock
    modules["select"] = poller
    import asyncio.core  # noqa: F401

    modules["time"] = time
    modules["select"] = select


# Replaces modules that cannot be loaded from files by stubs.
def _replace(chip):
    m = chip.Namespace("micropython", micropython, ("mem_peak", "mem_total", "mem_current"))
    m.schedule = chip.schedule
    sys.modules["micropython"] = m
    v = chip.Namespace("vfs", vfs, ("VfsPosix", "VfsRom", "VfsLfs1"))
    sys.modules["vfs"] = v
    s = chip.Namespace("sys", sys, ("executable", "argv", "atexit", "ps1", "ps2"))
    s.platform = "esp32"
    s.argv = []
    s.implementation = _implementation(sys.implementation)
    sys.modules["sys"] = s
    sys.modules["tls"] = sys.modules.pop("_tls")


# Names are kept in tables that double in size. On the chip those of the modules here are in ROM and
# an app of 1,200 names of its own gets by with 9 KB of tables; with the names of the stubs,
# the next doubling would take 14 KB of the heap of beacon code. So it is forced now.
def _names(chip):
    before = gc.mem_alloc()
    for i in range(2048):
        getattr(chip, "~%x" % i, None)
        if i % 64 == 0:
            gc.collect()
            now = gc.mem_alloc()
            if now - before > 14000:
                return
            before = now


class _implementation:
    def __init__(self, real):
        self.name = real.name
        self.version = real.version
        self._machine = "Virtual beacon with ESP32C3"
        self._mpy = real._mpy

    def __getitem__(self, i):
        return (self.name, self.version, self._machine, self._mpy)[i]


# Import as on the chip: what only the unix port has is not there, and the old names with a
# leading u lead to the stubs. Relative names are made absolute here, because the original
# would take them relative to this module.
def _import(modules):
    original = builtins.__import__

    def importer(name, globals=None, locals=None, fromlist=None, level=0):
        if level:
            package = globals["__name__"]
            if "__path__" not in globals:
                package = package.rpartition(".")[0]
            for _ in range(level - 1):
                package = package.rpartition(".")[0]
            name = package + "." + name if name else package
        elif name in _HIDDEN:
            raise ImportError("no module named '%s'" % name)
        elif name[0] == "u" and name[1:] in modules:
            return modules[name[1:]]
        return original(name, globals, locals, fromlist, 0)

    builtins.__import__ = importer


# As the port's _boot.py and inisetup.py: mount, or format what is blank, or be stuck.
def _boot(label, chip):
    import esp32
    import time

    found = esp32.Partition.find(1, label=label) if label else None
    if not found:
        return
    bdev = found[0]
    try:
        vfs.mount(bdev, "/")
        return
    except OSError:
        pass
    first = bytearray(4096)
    bdev.readblocks(0, first)
    if first != b"\xff" * 4096:
        chip.call("corrupt")
        while True:
            print("The filesystem appears to be corrupted. If you had important data there, you")
            print("may want to make a flash snapshot to try to recover it.")
            time.sleep(3)
    del first
    gc.collect()
    print("Performing initial setup")
    kind = vfs.VfsFat if label == "ffat" else vfs.VfsLfs2
    kind.mkfs(bdev)
    vfs.mount(kind(bdev), "/")
    with open("boot.py", "w") as f:
        f.write("# This file is executed on every boot (including wake-boot from deepsleep)\n")


# boot.py, main.py, REPL. SystemExit anywhere is a soft reset.
def _programs(chip):
    import time

    scope = sys.modules["__main__"].__dict__ if "__main__" in sys.modules else {}
    gc.collect()
    try:
        for name in ("boot.py", "main.py"):
            chip.call("phase", name)
            if not _exists(name):
                continue
            try:
                execfile(name, scope)  # noqa: F821
            except SystemExit:
                raise
            except BaseException as e:
                sys.print_exception(e)
                break
        chip.call("phase", "repl")
        while True:
            time.sleep(3600)
    except SystemExit:
        if not chip.gone:
            chip.call("soft_reset")


def _exists(name):
    import os

    try:
        return os.stat(name)[0] & 0x8000
    except OSError:
        return False
