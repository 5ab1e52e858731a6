# Stage 0: the first Python of every boot. Written once at flashing and never again in the field, so
# it is short, imports nothing from the app and trusts nothing it reads. In this order: start a
# watchdog, put the boot on trial or not, give a trial its hard limits, find the running slot's app
# and mount it.
# An exception must never leave this file: the port would skip main.py, and the chip would stay at
# the prompt. A trial that cannot be limited ends in a reset; whatever else fails (NVS above all) is
# printed, and the app starts without it.
# What it defines at the top stays for main.py, which runs in the same namespace.

import json
import os
import sys
import time
from binascii import crc32
from struct import unpack_from

import machine
from esp32 import NVS, Partition

try:
    import vfs
except ImportError:  # before MicroPython 1.23
    vfs = os

TRIALS = 3
TRIAL_LIMIT = 900_000  # ms that an unconfirmed release may run
WATCHDOG = 60_000  # ms until the app has to have its own, or to feed this one
RESCUE = 8  # crashes in a row before the other slot gets its turn

# Before anything is read: a confirmed app that hangs at its start, a damaged filesystem or a Ctrl-C
# out of noise on the console's pin would hold the chip for ever, and what never resets is never
# rescued. Without one a confirmed app starts all the same; guard() insists.
try:
    machine.WDT(timeout=WATCHDOG)
except Exception as error:
    print("watchdog:", repr(error))


crashes = 0
failure = None  # why there is no app to run


# Is the clock's date only a guess of the app's? It says so in RTC memory, behind our eight bytes.
def guessed():
    try:
        return machine.RTC().memory()[8:13] == b"guess"
    except Exception:
        return False


# One line in the error journal: the same ring that the app keeps, because what stage 0 has to say
# is said when no app is there to say it. It never raises: no reset waits for a reason.
def note(code, detail):
    try:
        nvs = NVS("beacon")
        entry = bytearray(1024)
        seq = 0
        try:
            found = nvs.get_i32("jrn_ack")
            if 0 < found < 1 << 29:
                seq = found
        except OSError:
            pass  # nothing was delivered yet
        for i in range(8):
            try:
                size = nvs.get_blob("journal%d" % i, entry)
                found = json.loads(entry[:size])[0]
                if isinstance(found, int) and found < 1 << 29:
                    seq = max(seq, found)
            except Exception:
                continue  # an unused or unreadable place of the ring
        seq += 1
        now = int(time.time()) + (946684800 if time.gmtime(0)[0] == 2000 else 0)
        if now <= 1735689600 or guessed():
            now = 0
        entry = json.dumps([seq, now, "boot", code, detail[:80]])
        place = "journal%d" % (seq % 8)
        try:
            nvs.set_blob(place, entry)
        except OSError:
            # A full NVS has room again once the oldest entry is gone.
            nvs.erase_key(place)
            nvs.set_blob(place, entry)
        nvs.commit()
    except Exception as error:
        print("journal: not stored:", repr(error))


# Counts this reset, and returns how many there were in a row. Where NVS does not keep the number,
# RTC memory does, as long as there is power: a count that stands still would never bring a rescue,
# or with every reset.
def count():
    try:
        nvs = NVS("beacon")
        try:
            number = nvs.get_i32("crashes")
        except OSError:
            number = 0  # not there yet
        number = number + 1 if 0 <= number < 1 << 29 else 1
        nvs.set_i32("crashes", number)
        nvs.commit()
        if nvs.get_i32("crashes") == number:
            return number
    except Exception as error:
        print("crashes: not stored:", repr(error))
    try:
        memory = machine.RTC().memory
        kept = memory()  # what lies behind the first eight bytes is the app's
        number = min(kept[7] + 1, 255) if kept[:7] == b"crashes" and len(kept) > 7 else 1
        memory(b"crashes" + bytes((number,)) + kept[8:])
        return number
    except Exception as error:
        print("crashes: not counted:", repr(error))
    return 1


# The active otadata entry as the bootloader picks it: (sector, slot number, state, its 32 bytes);
# sector -1 when no entry counts.
def active(ota, slots):
    best = (-1, -1, -1, b"")
    top = -1
    for sector in (0, 1):
        entry = bytearray(32)
        ota.readblocks(sector, entry, 0)
        seq = unpack_from("<I", entry)[0]
        state, crc = unpack_from("<II", entry, 24)
        if seq == 0xFFFFFFFF or state in (3, 4) or crc != crc32(entry[:4], 0xFFFFFFFF):
            continue
        if seq > top:
            top = seq
            best = (sector, (seq - 1 & 0xFFFFFFFF) % slots, state, entry)
    return best


# One of at most three trial boots: burn a mark in the entry's unused label, then turn PENDING back
# to NEW by clearing one bit. Both only clear bits, so no erase puts the entry at risk, and a cut
# anywhere leaves the bootloader either on another trial or on the old slot. The mark comes first:
# a trial that is not counted would be a boot loop without end.
def burn(ota, sector, entry):
    check = bytearray(32)
    for at in range(4, 3 + TRIALS):
        if entry[at] == 0xFF:
            ota.writeblocks(sector, b"\0", at)
            ota.readblocks(sector, check, 0)
            if check[at] == 0:
                ota.writeblocks(sector, b"\0\0\0\0", 24)
            return
    # The last trial stays PENDING: its reset is the rollback.


# Nobody feeds and nobody confirms: the chip resets by itself, whatever the app believes of itself.
# The timer comes again, because the port drops a callback when too many wait for their turn; what
# it needs is made now, because the app may have used up the heap by then.
def guard(ota, sector):
    machine.WDT(timeout=WATCHDOG)
    state = bytearray(4)

    def late(_):
        try:
            ota.readblocks(sector, state, 24)
        except Exception:
            state[0] = 0  # what cannot be read confirms nothing
        if state[0] != 2:
            machine.reset()

    machine.Timer(0, mode=machine.Timer.PERIODIC, period=TRIAL_LIMIT, callback=late)


# The read-only block device of an app filesystem, behind the core. Its blocks are smaller than
# sectors: nothing is ever erased here, and at 4 KiB a block dozens of small modules would not fit.
class Tail:
    def __init__(self, part, start, block, count):
        self.part = part
        self.start = start
        self.block = block
        self.count = count

    def readblocks(self, n, buf, off=0):
        self.part.readblocks(0, buf, self.start + n * self.block + off)

    def writeblocks(self, n, buf, off=0):
        raise OSError(30)

    def ioctl(self, op, arg):
        return self.count if op == 4 else self.block if op == 5 else 0


# Where a slot's app filesystem lies: behind the core's segments, checksum and hash, at the next
# sector. None when there is no image, or no filesystem behind it.
def tail(part):
    size = part.info()[3]
    head = bytearray(32)
    part.readblocks(0, head, 0)
    if head[0] != 0xE9 or head[1] > 16:
        return None
    hashed = 32 if head[23] else 0
    at = 24
    for _ in range(head[1]):
        part.readblocks(0, head, at)
        at += 8 + unpack_from("<I", head, 4)[0]
        if at > size - 4096:
            return None
    at = ((at + 16 & -16) + hashed + 4095) & -4096
    if at > size - 4096:
        return None
    part.readblocks(0, head, at)
    block, count = unpack_from("<II", head, 24)
    if (
        head[8:16] != b"littlefs"
        or not 128 <= block <= 4096
        or not 2 <= count <= (size - at) // block
    ):
        return None
    return Tail(part, at, block, count)


# The confirmed app crashes for ever: give another slot a trial, the factory app last. set_boot's
# traps: never a slot that otadata selects already, and never onto stale trial marks. The entry that
# counts is not touched before set_boot has checked the other image and written its entry whole.
def rescue(ota, slots, running, sector, slot):
    cause = machine.reset_cause()
    cause = "watchdog" if cause == machine.WDT_RESET else "cause %d" % cause
    for part in slots + Partition.find(Partition.TYPE_APP, subtype=0):
        _, kind, address, _, label, _ = part.info()
        if address == running.info()[2] or kind == 0x10 + slot:
            continue
        try:
            if kind and not tail(part):
                continue
            if kind:
                ota.ioctl(6, 0 if sector < 0 else 1 - sector)
            part.set_boot()
        except Exception as error:
            note("rescue", "%s: %r" % (label, error))
            continue
        note("rescue", "%s: %d resets, the last by %s" % (label, crashes, cause))
        machine.reset()


# Is this boot a trial? Then it gets its limits, or ends: without them nothing would end it. Else
# this reset may count as a crash.
def judge(running):
    global crashes
    slots = []
    while len(slots) < 16:
        found = Partition.find(Partition.TYPE_APP, subtype=0x10 + len(slots))
        if not found:
            break
        slots.append(found[0])
    found = Partition.find(Partition.TYPE_DATA, subtype=0)
    ota = found[0] if found and slots else None
    sector, slot, state, entry = (-1, -1, -1, b"")
    try:
        if ota:
            sector, slot, state, entry = active(ota, len(slots))
    except Exception as error:
        sys.print_exception(error)
        ota = None  # unreadable: nothing is changed there
    if state in (0, 1) and running.info()[1] == 0x10 + slot:
        try:
            if state == 1:
                burn(ota, sector, entry)
            guard(ota, sector)
        except Exception as error:
            sys.print_exception(error)
            machine.reset()
        return True
    if machine.reset_cause() not in (machine.PWRON_RESET, machine.DEEPSLEEP_RESET):
        crashes = count()
        # 8, 16, 32, ...: two broken slots that take turns must not wear out the flash.
        if ota and crashes >= RESCUE and not crashes & crashes - 1:
            rescue(ota, slots, running, sector, slot)
    return False


# Mounts the app's filesystem, where there is one, and returns the folder to import from.
def mount(running):
    device = tail(running)
    if device:
        vfs.mount(device, "/app", readonly=True)
    elif "app" not in os.listdir("/"):  # where development puts it
        return []
    return ["/app"]


# Puts the app's folder in front of everything else that can be imported. An app that is frozen into
# the core may have a filesystem, too, for its keys. What cannot be mounted is main.py's to say.
def start():
    global failure
    running = Partition(Partition.RUNNING)
    trial = False
    try:
        trial = judge(running)
    except Exception as error:
        sys.print_exception(error)
    sys.path[:] = [".frozen/app", ".frozen"]
    try:
        sys.path[:0] = mount(running)
    except Exception as error:
        if trial:
            note("crash", "mount: %r" % error)
            machine.reset()
        failure = error


try:
    start()
except Exception as error:
    failure = error

# Nobody needs these any more, and they take memory for as long as the app runs.
for name in ("active", "burn", "count", "guard", "judge", "mount", "rescue", "start", "tail"):
    globals().pop(name, None)
