# Stage 0: the first Python of every boot. It is written once, at flashing, and cannot be updated in
# the field, so it is short, imports nothing from the app and trusts nothing it reads. In order, it
# starts a watchdog, finds out whether this boot is a trial, gives a trial its hard limits, and
# mounts the app of the running slot.
#
# * An exception must never leave this file: the port would skip main.py, and the chip would stay at
#   the prompt.
# * A trial that cannot be limited ends in a reset.
# * Any other failure (mostly of NVS) is printed, and the app starts all the same.
#
# main.py runs in the same namespace: it uses journal_write(), `crashes` and `failure`.

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
WATCHDOG = 60_000  # ms; by then the app has started a watchdog of its own, or fed this one
RESCUE = 8  # crashes in a row before the other slot gets a trial

# The watchdog starts before anything is read: a confirmed app that hangs at its start, a damaged
# filesystem, or noise on the console's pin that reads as Ctrl-C would hold the chip for ever, and a
# chip that never resets is never rescued. A confirmed app also starts without a watchdog; a trial
# does not (start_trial_deadline).
try:
    machine.WDT(timeout=WATCHDOG)
except Exception as error:
    print("watchdog:", repr(error))


crashes = 0
failure = None  # why there is no app to run


# Whether the clock's date is only a guess of the app (net/clock.py): the app notes that in RTC
# memory, behind the eight bytes of stage 0.
def clock_is_guessed():
    try:
        return machine.RTC().memory()[8:13] == b"guess"
    except Exception:
        return False


# Writes one entry into the error journal, the same ring that the app keeps: stage 0 has something
# to say when there is no app to say it. Never raises, because a reset must not depend on it.
def journal_write(code, detail):
    try:
        nvs = NVS("beacon")
        entry = bytearray(1024)
        seq = 0
        try:
            found = nvs.get_i32("jrn_ack")
            if 0 < found < 1 << 29:
                seq = found
        except OSError:
            pass  # no entry was delivered yet
        for i in range(8):
            try:
                size = nvs.get_blob("journal%d" % i, entry)
                found = json.loads(entry[:size])[0]
                if isinstance(found, int) and found < 1 << 29:
                    seq = max(seq, found)
            except Exception:
                continue  # this place of the ring is unused or unreadable
        seq += 1
        now = int(time.time()) + (946684800 if time.gmtime(0)[0] == 2000 else 0)
        if now <= 1735689600 or clock_is_guessed():
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


# Counts this reset, and returns how many crashes there were in a row. When NVS does not keep the
# number, RTC memory does until the power is cut: with a number that never changes there would be no
# rescue at all, or one at every reset.
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
        kept = memory()  # the app uses the bytes behind the first eight
        number = min(kept[7] + 1, 255) if kept[:7] == b"crashes" and len(kept) > 7 else 1
        memory(b"crashes" + bytes((number,)) + kept[8:])
        return number
    except Exception as error:
        print("crashes: not counted:", repr(error))
    return 1


# The active otadata entry, chosen as the bootloader chooses it: (sector, slot number, state, its 32
# bytes); the sector is -1 when there is no valid entry.
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


# Marks one of at most three trial boots in the entry's unused label, then turns PENDING back to NEW
# by clearing one bit. Both writes only clear bits, so no erase puts the entry at risk, and after a
# power cut anywhere the bootloader boots either another trial or the old slot. The mark is written
# first: trials that are not counted would be an endless boot loop.
def mark_trial_boot(ota, sector, entry):
    check = bytearray(32)
    for at in range(4, 3 + TRIALS):
        if entry[at] == 0xFF:
            ota.writeblocks(sector, b"\0", at)
            ota.readblocks(sector, check, 0)
            if check[at] == 0:
                ota.writeblocks(sector, b"\0\0\0\0", 24)
            return
    # The last trial stays PENDING: its reset is the rollback.


# Limits a trial by a watchdog and by a timer that resets the chip unless otadata says VALID by
# then, whatever the app thinks of itself. The timer is periodic, because the port drops a callback
# when too many are scheduled. Its buffer is made now, because the app may have used up the heap
# when the timer fires.
def start_trial_deadline(ota, sector):
    machine.WDT(timeout=WATCHDOG)
    state = bytearray(4)

    def callback(_):
        try:
            ota.readblocks(sector, state, 24)
        except Exception:
            state[0] = 0  # an entry that cannot be read does not confirm the release
        if state[0] != 2:
            machine.reset()

    machine.Timer(0, mode=machine.Timer.PERIODIC, period=TRIAL_LIMIT, callback=callback)


# The read-only block device of the app filesystem behind the core. Its blocks are smaller than
# sectors, because dozens of small modules would not fit with 4 KiB a block; no block is erased.
class AppBlockDevice:
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


# The block device of a slot's app filesystem, which begins at the next sector behind the core's
# segments, checksum and hash. None when there is no image, or no filesystem behind it.
def find_app(part):
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
    return AppBlockDevice(part, at, block, count)


# Gives another slot a trial when the confirmed app keeps crashing; the factory app comes last.
# set_boot() must not be called for a slot that otadata selects already, nor onto stale trial marks.
# The active entry is not touched before set_boot() has checked the other image and written its
# entry completely.
def rescue(ota, slots, running, sector, slot):
    cause = machine.reset_cause()
    cause = "watchdog" if cause == machine.WDT_RESET else "cause %d" % cause
    for part in slots + Partition.find(Partition.TYPE_APP, subtype=0):
        _, kind, address, _, label, _ = part.info()
        if address == running.info()[2] or kind == 0x10 + slot:
            continue
        try:
            if kind and not find_app(part):
                continue
            if kind:
                ota.ioctl(6, 0 if sector < 0 else 1 - sector)
            part.set_boot()
        except Exception as error:
            journal_write("rescue", "%s: %r" % (label, error))
            continue
        journal_write("rescue", "%s: %d resets, the last by %s" % (label, crashes, cause))
        machine.reset()


# Returns whether this boot is a trial. A trial gets its limits, or ends in a reset, because without
# limits a hanging trial would never end. Otherwise this reset may count as a crash.
def limit_trial_or_count_crash(running):
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
        ota = None  # unreadable, so it is not changed
    if state in (0, 1) and running.info()[1] == 0x10 + slot:
        try:
            if state == 1:
                mark_trial_boot(ota, sector, entry)
            start_trial_deadline(ota, sector)
        except Exception as error:
            sys.print_exception(error)
            machine.reset()
        return True
    if machine.reset_cause() not in (machine.PWRON_RESET, machine.DEEPSLEEP_RESET):
        crashes = count()
        # At 8, 16, 32, ... only: two broken slots that take turns must not wear out the flash.
        if ota and crashes >= RESCUE and not crashes & crashes - 1:
            rescue(ota, slots, running, sector, slot)
    return False


# Mounts the app's filesystem, if there is one, and returns the folders to import from.
def mount(running):
    device = find_app(running)
    if device:
        vfs.mount(device, "/app", readonly=True)
    elif "app" not in os.listdir("/"):  # a folder of sources, during development
        return []
    return ["/app"]


# Puts the app's folder in front of everything else that can be imported. An app that is frozen into
# the core may have a filesystem as well, for its keys. main.py reports an app that cannot be
# mounted.
def start():
    global failure
    running = Partition(Partition.RUNNING)
    trial = False
    try:
        trial = limit_trial_or_count_crash(running)
    except Exception as error:
        sys.print_exception(error)
    sys.path[:] = [".frozen/app", ".frozen"]
    try:
        sys.path[:0] = mount(running)
    except Exception as error:
        if trial:
            journal_write("crash", "mount: %r" % error)
            machine.reset()
        failure = error


try:
    start()
except Exception as error:
    failure = error

# They are not needed any more, and would take memory for as long as the app runs.
for name in (
    "active",
    "mark_trial_boot",
    "count",
    "start_trial_deadline",
    "limit_trial_or_count_crash",
    "mount",
    "rescue",
    "start",
    "find_app",
):
    globals().pop(name, None)
