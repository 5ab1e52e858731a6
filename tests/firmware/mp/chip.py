# A C3 in RAM, as far as stage 0 and the update modules can see it: NOR flash with a table of
# partitions, otadata, a bootloader, NVS and a reset. Every flash operation is counted, and power
# can be cut at any of them. The exact chip is the virtual beacon's; this one is for walks of
# thousands of boots inside one interpreter.

import json
import os
import socket
import sys
from binascii import crc32
from hashlib import sha256
from struct import pack, pack_into, unpack_from

import vfs

SECTOR = 4096
NEW, PENDING, VALID, INVALID, ABORTED, UNDEFINED = 0, 1, 2, 3, 4, 0xFFFFFFFF
M = 0xFFFFFFFF


# Power is gone: nothing of the program runs on.
class Cut(BaseException):
    pass


# machine.reset() and everything that ends like it.
class Reset(BaseException):
    pass


def crc(seq):
    return crc32(pack("<I", seq), M)


def entry(seq, state, label=b"\xff" * 20):
    return pack("<I", seq) + label + pack("<II", state, crc(seq))


# A bootable image of the C3's format, as small as it gets, and an app filesystem behind it.
def image(files=None, mark=0, segments=1, hashed=True):
    data = bytearray(24)
    data[0] = 0xE9
    data[1] = segments
    data[12] = 5
    data[23] = 1 if hashed else 0
    check = 0xEF
    for i in range(segments):
        body = bytes([mark, i, 0, 0] * 16)
        data += pack("<II", 0x3C000020, len(body)) + body
        for b in body:
            check ^= b
    data += bytes(15 - len(data) % 16) + bytes([check])
    if hashed:
        data += sha256(data).digest()
    if files is not None:
        data += b"\xff" * (-len(data) % SECTOR) + littlefs(files)
    return data


class Blocks:
    def __init__(self, count):
        self.data = bytearray(b"\xff" * (count * SECTOR))

    def readblocks(self, n, buf, off=0):
        at = n * SECTOR + off
        buf[:] = self.data[at : at + len(buf)]

    def writeblocks(self, n, buf, off=0):
        at = n * SECTOR + off
        self.data[at : at + len(buf)] = buf

    def ioctl(self, op, arg):
        if op == 4:
            return len(self.data) // SECTOR
        if op == 5:
            return SECTOR
        if op == 6:
            self.data[arg * SECTOR : (arg + 1) * SECTOR] = b"\xff" * SECTOR
        return 0


def littlefs(files, count=2):
    blocks = Blocks(count)
    vfs.VfsLfs2.mkfs(blocks)
    fs = vfs.VfsLfs2(blocks)
    for name in sorted(files):
        with fs.open(name, "w") as f:
            f.write(files[name])
    return blocks.data


# The default board's partitions with slots of `slot` sectors, or with a factory app before them.
def layout(slot=4, factory=False, ota=True, slots=2):
    rows = []
    at = 2 * SECTOR
    if ota:
        rows.append((1, 0, 0, 2 * SECTOR, "otadata"))
    if factory:
        rows.append((0, 0, at, slot * SECTOR, "factory"))
        at += slot * SECTOR
    for i in range(slots):
        rows.append((0, 0x10 + i, at, slot * SECTOR, "ota_%d" % i))
        at += slot * SECTOR
    return rows


class Chip:
    def __init__(self, rows):
        self.rows = rows
        end = max(row[2] + row[3] for row in rows)
        self.flash = bytearray(b"\xff" * end)
        self.nvs = {}
        # What is wrong with NVS: `nvs_full` takes no new value but gives old ones up, `nvs_worn`
        # changes nothing any more, `nvs_broken` could not be initialised.
        self.nvs_full = self.nvs_worn = self.nvs_broken = False
        self.rtc = b""
        self.nvs_room = 0  # values that still fit in although it is full
        self.nvs_fails = ()  # changes to come that fail, by number from now on
        self.running = None
        self.cause = 1
        self.ops = 0
        self.cut = -1
        self.torn = 0  # bytes of the cut operation that still reach the flash
        self.bad_erase = set()  # flash sectors that refuse
        self.bad_write = set()
        self.stuck = {}  # flash address -> bits that read as 1 whatever is programmed
        self.wdt = None
        self.reads = lambda: None  # told of every read of a partition
        self.timer = None
        self.slept = 0
        self.failing = set()  # of what machine and otadata refuse: "wdt", "timer", "otadata"

    # -- flash

    def _op(self):
        if self.ops == self.cut:
            return False
        self.ops += 1
        return True

    def erase(self, at):
        if not self._op():
            raise Cut
        if at // SECTOR in self.bad_erase:
            raise OSError(-24577, "ESP_ERR_FLASH_OP_FAIL")
        self.flash[at : at + SECTOR] = b"\xff" * SECTOR

    def program(self, at, data):
        whole = self._op()
        if whole and at // SECTOR in self.bad_write:
            raise OSError(-24577, "ESP_ERR_FLASH_OP_FAIL")
        for i in range(len(data) if whole else min(self.torn, len(data))):
            bits = self.flash[at + i] & data[i]
            self.flash[at + i] = bits | self.stuck.get(at + i, 0)
        if not whole:
            raise Cut

    # Does this change of NVS fail?
    def worn(self):
        fails = self.nvs_worn or 0 in self.nvs_fails
        self.nvs_fails = [n - 1 for n in self.nvs_fails if n]
        return fails

    def row(self, label):
        for row in self.rows:
            if row[4] == label:
                return row
        raise ValueError(label)

    def store(self, label, data):
        at = self.row(label)[2]
        self.flash[at : at + len(data)] = data

    # -- otadata: ESP-IDF 5.x

    def entries(self):
        return [bytes(self.flash[i * SECTOR : i * SECTOR + 32]) for i in (0, 1)]

    def put(self, i, data):
        self.erase(i * SECTOR)
        self.program(i * SECTOR, data)

    def slots(self):
        return [row for row in self.rows if row[0] == 0 and row[1] >= 0x10]

    def active(self):
        best = top = -1
        for i, e in enumerate(self.entries()):
            seq = unpack_from("<I", e)[0]
            state, check = unpack_from("<II", e, 24)
            if seq != M and state not in (INVALID, ABORTED) and check == crc(seq) and seq > top:
                best, top = i, seq
        return best

    def state(self, i):
        return unpack_from("<I", self.entries()[i], 24)[0]

    def slot_of(self, i):
        return (unpack_from("<I", self.entries()[i])[0] - 1 & M) % len(self.slots())

    def _set_state(self, i, state):
        data = bytearray(self.entries()[i])
        pack_into("<I", data, 24, state)
        self.put(i, data)

    def bootable(self, row):
        at = row[2]
        if self.flash[at] != 0xE9:
            return False
        p = 24
        check = 0xEF
        for _ in range(self.flash[at + 1]):
            size = unpack_from("<I", self.flash, at + p + 4)[0]
            p += 8
            if p + size > row[3]:
                return False
            for b in self.flash[at + p : at + p + size]:
                check ^= b
            p += size
        p = p + 16 & ~15
        if self.flash[at + p - 1] != check:
            return False
        if self.flash[at + 23]:
            digest = sha256(self.flash[at : at + p]).digest()
            return digest == self.flash[at + p : at + p + 32]
        return True

    # Runs the second-stage bootloader; sets and returns the running row.
    def boot(self, cause=2):
        self.cause = cause
        if cause == 1:
            self.rtc = b""
        self.wdt = self.timer = None
        slots = self.slots()
        factory = [row for row in self.rows if row[0] == 0 and row[1] == 0]
        init = False
        first = -1
        if self.rows[0][4] == "otadata":
            for i in (0, 1):
                if self.state(i) == PENDING:
                    self._set_state(i, ABORTED)
            es = self.entries()
            seqs = [unpack_from("<I", e)[0] for e in es]
            if all(seqs[i] == M or self.state(i) in (INVALID, ABORTED) for i in (0, 1)):
                if not factory:
                    first = 0
                    init = all(
                        seqs[i] == M or unpack_from("<I", es[i], 28)[0] != crc(seqs[i])
                        for i in (0, 1)
                    )
            else:
                a = self.active()
                if a >= 0:
                    first = self.slot_of(a)
                    if self.state(a) == NEW:
                        self._set_state(a, PENDING)
        for j in list(range(first, -2, -1)) + list(range(first + 1, len(slots))):
            rows = factory if j < 0 else [slots[j]]
            if rows and self.bootable(rows[0]):
                if j >= 0 and init:
                    self.put(0, entry(j + 1, VALID))
                self.running = rows[0]
                return self.running
        self.running = None
        return None

    def set_boot(self, row):
        if not self.bootable(row):
            raise OSError(-5379, "ESP_ERR_OTA_VALIDATE_FAILED")
        if self.rows[0][4] != "otadata":
            raise OSError(-261, "ESP_ERR_NOT_FOUND")
        if row[1] == 0:
            self.erase(0)
            self.erase(SECTOR)
            return
        n = len(self.slots())
        want = row[1] - 0x10 + 1
        a = self.active()
        i = 0
        seq = want
        if a >= 0:
            i = 1 - a
            now = unpack_from("<I", self.entries()[a])[0]
            seq = want % n
            while seq < now:
                seq += n
        self.put(i, entry(seq, NEW, self.entries()[i][4:24]))

    def mark_valid(self):
        a = self.active()
        if a < 0:
            raise OSError(1, "ESP_FAIL")
        if self.state(a) != VALID:
            self._set_state(a, VALID)

    # -- modules

    # Makes esp32 and machine importable, and runs stage 0's boot.py as the port does. Returns the
    # namespace that main.py would get.
    def start(self, stage0=None, defines=None):
        modules(self)
        scope = {"__name__": "__main__"}
        try:
            vfs.umount("/app")
        except OSError:
            pass
        path = sys.path[:]
        try:
            exec(stage0 or STAGE0, scope)
            self.path = sys.path[:]
        finally:
            sys.path[:] = path
        return scope

    # Stage 0's main.py in the namespace that boot.py left, and in its search path. It has to end in
    # a Reset; what else it raises would have ended at the prompt. Returns the seconds it slept.
    def finish(self, scope):
        path = sys.path[:]
        loaded = dict(sys.modules)
        sys.path[:] = self.path
        sys.modules["time"] = sleeper(self)
        self.slept = None
        try:
            exec(MAIN, scope)
        except Reset:
            return self.slept
        finally:
            sys.path[:] = path
            sys.modules.clear()
            sys.modules.update(loaded)
        raise AssertionError("main.py came to its end")


def sleeper(chip):
    import time as real

    class time:
        time = staticmethod(real.time)
        gmtime = staticmethod(real.gmtime)

        @staticmethod
        def sleep(seconds):
            chip.slept = seconds

    return time


def stage0(name):
    with open(__file__.rsplit("/", 4)[0] + "/firmware/stage0/" + name) as f:
        return compile(f.read(), name, "exec")


STAGE0 = stage0("boot.py")
MAIN = stage0("main.py")


def modules(chip):
    class Partition:
        BOOT = 0
        RUNNING = 1
        TYPE_APP = 0
        TYPE_DATA = 1

        def __init__(self, which, block_size=SECTOR):
            if which == 1:
                which = chip.running
            elif which == 0:
                a = chip.active()
                which = chip.slots()[chip.slot_of(a)] if a >= 0 else chip.slots()[0]
            elif isinstance(which, str):
                which = chip.row(which)
            self.row = which

        @staticmethod
        def find(type=0, subtype=0xFF, label=None, block_size=SECTOR):
            return [
                Partition(row)
                for row in chip.rows
                if row[0] == type and subtype in (0xFF, row[1]) and label in (None, row[4])
            ]

        def info(self):
            return self.row + (False,)

        def _at(self, n, off, size):
            at = n * SECTOR + off
            if at > self.row[3]:
                raise OSError(-258, "ESP_ERR_INVALID_ARG")
            if at + size > self.row[3]:
                raise OSError(-260, "ESP_ERR_INVALID_SIZE")
            return self.row[2] + at

        def readblocks(self, n, buf, off=0):
            at = self._at(n, off, len(buf))
            chip.reads()
            if self.row[4] in chip.failing:
                raise OSError(-24577, "ESP_ERR_FLASH_OP_FAIL")
            buf[:] = chip.flash[at : at + len(buf)]

        def writeblocks(self, n, buf, off=None):
            at = self._at(n, off or 0, len(buf))
            self._may_write()
            if off is None:
                if len(buf) % SECTOR:
                    raise OSError(-260, "ESP_ERR_INVALID_SIZE")
                for i in range(0, len(buf), SECTOR):
                    chip.erase(at + i)
            chip.program(at, buf)

        def ioctl(self, op, arg):
            if op == 4:
                return self.row[3] // SECTOR
            if op == 5:
                return SECTOR
            if op == 6:
                at = self._at(arg, 0, SECTOR)
                self._may_write()
                chip.erase(at)
            return 0

        def _may_write(self):
            if chip.running and self.row[2] == chip.running[2]:
                raise Reset("panic: write to the running slot")

        def set_boot(self):
            chip.set_boot(self.row)

        @classmethod
        def mark_app_valid_cancel_rollback(cls):
            chip.mark_valid()

        def get_next_update(self):
            slots = chip.slots()
            later = [row for row in slots if row[1] > self.row[1]]
            return Partition((later or slots)[0])

    class NVS:
        def __init__(self, namespace):
            if chip.nvs_broken:
                raise OSError(-4353, "ESP_ERR_NVS_NOT_INITIALIZED")
            self.space = namespace

        def _get(self, key, kind):
            value = chip.nvs.get((self.space, key))
            if not isinstance(value, kind):
                raise OSError(-4354, "ESP_ERR_NVS_NOT_FOUND")
            return value

        def get_i32(self, key):
            return self._get(key, int)

        def get_blob(self, key, buf):
            value = self._get(key, bytes)
            if len(value) > len(buf):
                raise OSError(-4364, "ESP_ERR_NVS_INVALID_LENGTH")
            buf[: len(value)] = value
            return len(value)

        def _set(self, key, value):
            if len(key) > 15:
                raise OSError(-4361, "ESP_ERR_NVS_KEY_TOO_LONG")
            if chip.nvs.get((self.space, key)) == value:
                return
            if chip.worn():
                raise OSError(-24577, "ESP_ERR_FLASH_OP_FAIL")
            if chip.nvs_full:
                if not chip.nvs_room:
                    raise OSError(-4357, "ESP_ERR_NVS_NOT_ENOUGH_SPACE")
                chip.nvs_room -= 1
            if not chip._op():
                raise Cut
            if chip.nvs_full and (self.space, key) in chip.nvs:
                chip.nvs_room += 1
            chip.nvs[(self.space, key)] = value

        def set_i32(self, key, value):
            self._set(key, value)

        def set_blob(self, key, value):
            self._set(key, value.encode() if isinstance(value, str) else bytes(value))

        def erase_key(self, key):
            if (self.space, key) not in chip.nvs:
                raise OSError(-4354, "ESP_ERR_NVS_NOT_FOUND")
            if chip.worn():
                raise OSError(-24577, "ESP_ERR_FLASH_OP_FAIL")
            if not chip._op():
                raise Cut
            if chip.nvs_full:
                chip.nvs_room += 1
            del chip.nvs[(self.space, key)]

        def commit(self):
            pass

    class esp32:
        pass

    esp32.Partition = Partition
    esp32.NVS = NVS

    class Timer:
        ONE_SHOT = 0
        PERIODIC = 1

        def __init__(self, id, mode, period, callback):
            if "timer" in chip.failing:
                raise OSError(-259, "ESP_ERR_INVALID_STATE")
            chip.timer = (period, callback)

    class machine:
        PWRON_RESET = 1
        HARD_RESET = 2
        WDT_RESET = 3
        DEEPSLEEP_RESET = 4
        SOFT_RESET = 5

        @staticmethod
        def reset():
            raise Reset

        @staticmethod
        def reset_cause():
            return chip.cause

        @staticmethod
        def WDT(id=0, timeout=5000):
            if "wdt" in chip.failing:
                raise OSError(-259, "ESP_ERR_INVALID_STATE")
            chip.wdt = timeout

    class RTC:
        def memory(self, data=None):
            if "rtc" in chip.failing:
                raise ValueError("no memory")
            if data is not None:
                chip.rtc = bytes(data)
            return chip.rtc

    machine.Timer = Timer
    machine.RTC = RTC
    sys.modules["esp32"] = esp32
    sys.modules["machine"] = machine
    return esp32, machine


# The ring of the error journal, oldest first.
def journal(chip):
    found = []
    for (_, key), value in chip.nvs.items():
        if key.startswith("journal"):
            found.append(json.loads(value))
    return sorted(found, key=lambda e: e[0])


# A bound socket on 127.0.0.1 and its port: the unix port cannot tell which one it was given.
def listen(kind):
    while True:
        port = 20000 + int.from_bytes(os.urandom(2), "big") % 20000
        sock = socket.socket(socket.AF_INET, kind)
        sock.setblocking(False)
        try:
            sock.bind(socket.getaddrinfo("127.0.0.1", port)[0][-1])
            return sock, port
        except OSError:
            sock.close()


def listdir(path):
    return sorted(os.listdir(path))
