# What the suites of an update's last steps share: a chip with two releases of one core.

import asyncio
from binascii import hexlify
from hashlib import sha256

from mp import chip as c
from mp.chip import SECTOR, VALID, Chip, entry, image, layout

c.modules(Chip(layout(slot=1)))

from ota import bootable, slots, writer  # noqa: E402

APP = {"app.json": "{}"}
PAGE = 256


def fresh():
    chip = Chip(layout())
    for row in chip.rows:
        if row[0] == 0:
            chip.store(row[4], image(APP, mark=row[1]))
    chip.flash[0:32] = entry(1, VALID)
    chip.boot(1)
    slots.Partition = c.modules(chip)[0].Partition
    return chip, slots.Slots()


def refuses(code, call, *args):
    try:
        call(*args)
    except slots.FlashError as error:
        assert error.code == code, error.code
        return
    raise AssertionError("went through")


def write(w, data):
    for at in range(0, len(data), SECTOR):
        piece = data[at : at + SECTOR]
        w.buf[: len(piece)] = piece
        w.write(len(piece))


# A writer for `part`.
def begin(part, decrypt=None):
    w = writer.Writer(part, [0, 0, 0], decrypt)
    w.part = part
    return w


# SHA-256 of the slot with the head that is still missing in it.
def digest(w):
    return asyncio.run(bootable.digest(bootable._CompletedSlot(w.part, w.head), w.written))


# The end of an update: the hash, the sector behind the image, then the image's head. `checksum` is
# the signed one; that of the slot by default.
def finish(w, checksum=None):
    asyncio.run(bootable.check_image(w.part, w.written, w.head, checksum or digest(w)))
    bootable.write_head(w.part, w.head)


def sha(data):
    return hexlify(sha256(data).digest()).decode()


def content(chip, label="ota_1"):
    _, _, at, size, _ = chip.row(label)
    return bytes(chip.flash[at : at + size])


OLD = image({"app.json": "{}", "one.py": "1" * 40}, mark=9, segments=16)
NEW = image({"app.json": "{}", "two.py": "2" * 40}, mark=9, segments=16)


# A slot that holds a release with the core that the new one has, too.
def same_core():
    assert OLD[:SECTOR] == NEW[:SECTOR] and OLD[SECTOR:] != NEW[SECTOR:]
    chip, s = fresh()
    chip.store("ota_1", OLD)
    return chip, s


# Would the bootloader or stage 0 take the other slot? Eight crashes of the running release tell.
def rescued(chip):
    chip.cut = -1
    chip.nvs.clear()
    for _ in range(8):
        chip.boot(2)
        assert chip.running[4] == "ota_0"
        try:
            chip.start()
        except c.Reset:
            break
    chip.boot(2)
    return chip.running[4] == "ota_1"


def whole(chip, data):
    held = content(chip)
    return held[: len(data)] == data
