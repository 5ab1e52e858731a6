# `esp32`: flash partitions and NVS, decided by the supervisor on the flash model. Reads go
# to the shared flash content directly, unless the supervisor wants to see them.

import _chip
from micropython import const

_SECTOR = const(4096)
_PIECE = const(512)  # read at once through the supervisor: that takes heap a chip would not

HEAP_DATA = const(4)
HEAP_EXEC = const(1)
WAKEUP_ALL_LOW = False
WAKEUP_ANY_HIGH = True

_flash = None
_direct = True


# Takes over the descriptor of the flash content.
def _setup(fd, direct):
    global _flash
    _flash = open(fd, "r+b")
    _watch(direct)
    _chip.handlers["reads"] = _watch


def _watch(direct):
    global _direct
    _direct = direct


class Partition:
    BOOT = 0
    RUNNING = 1
    TYPE_APP = 0
    TYPE_DATA = 1

    def __init__(self, id, block_size=_SECTOR):
        if not isinstance(id, tuple):
            id = _chip.call("partition", id)
        self._index = id[0]
        self._info = id[1:]
        self._block = block_size & 0xFFFF

    @staticmethod
    def find(type=0, subtype=0xFF, label=None, block_size=_SECTOR):
        found = _chip.call("partitions", type, subtype, label)
        return [Partition(p, block_size) for p in found]

    def info(self):
        return self._info

    def __repr__(self):
        i = self._info
        return "<Partition type=%d, subtype=%d, address=%d, size=%d, label=%s, encrypted=%d>" % i

    def readblocks(self, n, buf, off=0):
        at = n * self._block + off
        if _direct and 0 <= at and at + len(buf) <= self._info[3]:
            _chip.hold()  # between seek and read no handler may read
            try:
                _flash.seek(self._info[2] + at)
                _flash.readinto(buf)
            finally:
                _chip.release()
        else:
            view = memoryview(buf)
            done = 0
            while True:
                part = _chip.call("read", self._index, at + done, min(len(buf) - done, _PIECE))
                view[done : done + len(part)] = part
                done += len(part)
                if done >= len(buf):
                    return

    def writeblocks(self, n, buf, off=None):
        at = n * self._block + (off or 0)
        if isinstance(buf, bytearray) and not buf:  # a NULL pointer on the chip
            raise OSError(-258, "ESP_ERR_INVALID_ARG")
        _chip.transfer(("write", self._index, at, off is None, self._block), buf)

    def ioctl(self, cmd, arg):
        if cmd in (1, 2, 3):
            return 0
        if cmd == 4:
            return self._info[3] // self._block
        if cmd == 5:
            return self._block
        if cmd == 6:
            if self._block != _SECTOR:
                return -22
            _chip.call("erase", self._index, arg * _SECTOR, _SECTOR)
            return 0

    def set_boot(self):
        _chip.call("set_boot", self._index)

    def get_next_update(self):
        return Partition(_chip.call("next_update", self._index))

    @classmethod
    def mark_app_valid_cancel_rollback(cls):
        _chip.call("mark_valid")


class NVS:
    def __init__(self, namespace):
        self._handle = _chip.call("nvs_open", namespace)

    def set_i32(self, key, value):
        if not -0x80000000 <= value < 0x80000000:
            raise OverflowError("overflow converting long int to machine word")
        _chip.call("nvs_set", self._handle, key, value)

    def get_i32(self, key):
        return _chip.call("nvs_get", self._handle, key, None)

    def set_blob(self, key, value):
        _chip.call(
            "nvs_set", self._handle, key, value.encode() if isinstance(value, str) else value
        )

    def get_blob(self, key, buf):
        if not len(buf):
            return _chip.call("nvs_size", self._handle, key)
        value = _chip.call("nvs_get", self._handle, key, len(buf))
        memoryview(buf)[: len(value)] = value
        return len(value)

    def erase_key(self, key):
        _chip.call("nvs_erase", self._handle, key)

    def commit(self):
        pass


def idf_heap_info(capabilities):
    return list(_chip.call("idf_heap", capabilities))


def mcu_temperature():
    return _chip.call("temperature")


def wake_on_gpio(pins, level):
    pass
