# heap: 4M
# The writer on a chip in RAM: what ends up in the slot, what happens when the flash does not do as
# it is told, and what may boot after a power cut anywhere.

import asyncio
from binascii import hexlify
from hashlib import sha256

from mp.chip import SECTOR, Cut, image
from mp.update import (
    NEW,
    OLD,
    PAGE,
    content,
    finish,
    fresh,
    refuses,
    rescued,
    same_core,
    whole,
    write,
)
from ota import slots, writer


def test_writes_what_it_was_given():
    chip, s = fresh()
    for size in (1, 4095, 4096, 4097, 3 * SECTOR, 4 * SECTOR):
        data = bytes(i * 7 & 0xFF for i in range(size))
        w = writer.Writer(s.partition(1), size)
        write(w, data)
        at = chip.row("ota_1")[2]
        assert bytes(chip.flash[at : at + PAGE]) == b"\xff" * PAGE and w.written == size
        chip.flash[at : at + PAGE] = w.head
        assert bytes(chip.flash[at : at + size]) == data
        assert chip.flash[at + size : at + (size + 4095 & ~4095)] == b"\xff" * (-size % 4096)
        assert w.digest() == hexlify(sha256(data).digest()).decode()


def test_decrypts_once():
    chip, s = fresh()
    seen = []

    def flip(buf, offset):
        seen.append((offset, len(buf)))
        for i in range(len(buf)):
            buf[i] ^= 0xFF

    chip.stuck[chip.row("ota_1")[2] + PAGE] = 0x01  # both tries of the first sector fail
    w = writer.Writer(s.partition(1), 5000, flip)
    refuses("readback", write, w, b"\xff" * 5000)
    chip.stuck.clear()
    seen.clear()
    w = writer.Writer(s.partition(1), 5000, flip)
    write(w, b"\xff" * 5000)
    assert seen == [(0, 4096), (4096, 904)]
    assert w.digest() == hexlify(sha256(bytes(5000)).digest()).decode()


def test_a_sector_gets_a_second_try():
    chip, s = fresh()
    at = chip.row("ota_1")[2]
    program = chip.program
    fails = [1]

    def flaky(address, data):
        if fails and address == at + PAGE:
            fails.pop()
            raise OSError(-24577, "ESP_ERR_FLASH_OP_FAIL")
        program(address, data)

    chip.program = flaky
    w = writer.Writer(s.partition(1), SECTOR)
    write(w, b"\x55" * SECTOR)
    assert not fails and content(chip)[PAGE:SECTOR] == b"\x55" * (SECTOR - PAGE)


def test_flash_that_fails_has_a_name():
    chip, s = fresh()
    at = chip.row("ota_1")[2]
    chip.bad_write.add(at // SECTOR)
    refuses("write", write, writer.Writer(s.partition(1), SECTOR), b"\x55" * SECTOR)
    chip.bad_erase.add(at // SECTOR)
    refuses("erase", write, writer.Writer(s.partition(1), SECTOR), b"\x55" * SECTOR)
    chip.stuck[at + SECTOR + 5] = 0x80
    w = writer.Writer(s.partition(1), 2 * SECTOR)
    chip.bad_erase.clear()
    chip.bad_write.clear()
    refuses("readback", write, w, b"\x55" * (2 * SECTOR))
    assert w.written == SECTOR


def test_rehash_counts_what_is_in_flash():
    chip, s = fresh()
    data = b"\x11" * (2 * SECTOR)
    w = writer.Writer(s.partition(1), len(data))
    write(w, data[:SECTOR])
    asyncio.run(w.rehash())
    write(w, data[SECTOR:])
    assert w.digest() == hexlify(sha256(data).digest()).decode()
    w = writer.Writer(s.partition(1), len(data))
    write(w, data[:SECTOR])
    chip.flash[chip.row("ota_1")[2] + PAGE + 9] = 0  # changed behind its back
    asyncio.run(w.rehash())
    write(w, data[SECTOR:])
    assert w.digest() != hexlify(sha256(data).digest()).decode()
    w.restart()
    write(w, data)
    assert w.digest() == hexlify(sha256(data).digest()).decode()


def test_a_power_cut_anywhere_leaves_nothing_half_written_that_boots():
    last = None
    cut = old = new = 0
    while last is None or cut < last:
        for torn in (0, 1, 40, PAGE - 1):
            chip, s = same_core()
            w = writer.Writer(s.partition(1), len(NEW))
            chip.ops, chip.cut, chip.torn = 0, cut, torn
            try:
                write(w, NEW)
                finish(w)
                last = chip.ops
            except Cut:
                pass
            row = chip.row("ota_1")
            if chip.bootable(row):
                assert whole(chip, OLD) or whole(chip, NEW), (cut, torn)
            took = rescued(chip)
            assert took == (whole(chip, OLD) or whole(chip, NEW)), (cut, torn)
            old += whole(chip, OLD)
            new += whole(chip, NEW)
        cut += 1
    assert last > 6 and old == 4 and new == 4  # before the first operation, and after the last


# Has a chip note its flash operations, as offsets from `at`.
def watch(chip, at):
    seen = []
    erase, program = chip.erase, chip.program

    def note_erase(address):
        seen.append(("erase", address - at))
        erase(address)

    def note_program(address, data):
        seen.append(("program", address - at, len(data)))
        program(address, data)

    chip.erase, chip.program = note_erase, note_program
    return seen


def test_the_first_sector_goes_first_and_its_head_comes_last():
    small = image(None, mark=9)
    for data in (small, image(None, mark=9, segments=16), NEW):
        for opener in (None, lambda buf, offset: None):
            chip, s = same_core()
            seen = watch(chip, chip.row("ota_1")[2])
            w = writer.Writer(s.partition(1), len(data), opener)
            write(w, data)
            w.restart()
            write(w, data)
            finish(w)
            assert seen[0] == ("erase", 0), seen
            assert seen[-1] == ("program", 0, PAGE), seen
            heads = [op for op in seen if op[0] == "program" and op[1] < PAGE]
            assert len(heads) == 1, "the first page is programmed once"
            assert whole(chip, data)
    assert len(small) < PAGE


def test_an_update_that_was_not_finished_leaves_a_slot_that_does_not_boot():
    for stop in range(len(NEW) // SECTOR + 1):
        chip, s = same_core()
        w = writer.Writer(s.partition(1), len(NEW))
        write(w, NEW[: stop * SECTOR])
        assert rescued(chip) == (not stop)
    chip, s = same_core()
    w = writer.Writer(s.partition(1), len(NEW))
    write(w, NEW)
    assert not rescued(chip), "all of it but the head"
    try:
        slots.Slots().arm(1)
        raise AssertionError("armed")
    except OSError as error:
        assert error.errno == -5379


def test_a_first_sector_that_fails_gives_up_a_slot_that_does_not_boot():
    for fault in ("bad_write", "stuck"):
        chip, s = same_core()
        at = chip.row("ota_1")[2]
        if fault == "stuck":
            chip.stuck[at + PAGE + 3] = 0xFF
        else:
            chip.bad_write.add(at // SECTOR)
        code = "readback" if fault == "stuck" else "write"
        refuses(code, write, writer.Writer(s.partition(1), len(NEW)), NEW)
        chip.stuck.clear()
        chip.bad_write.clear()
        assert not rescued(chip)


def test_rehash_takes_the_head_from_where_it_is_kept():
    chip, s = same_core()
    w = writer.Writer(s.partition(1), len(NEW))
    for at in range(0, len(NEW), SECTOR):
        write(w, NEW[at : at + SECTOR])
        if w.written < len(NEW):
            asyncio.run(w.rehash())
    assert w.digest() == hexlify(sha256(NEW).digest()).decode()
    finish(w)
    assert rescued(chip)


def test_a_head_that_is_no_longer_blank_is_found_out():
    chip, s = same_core()
    w = writer.Writer(s.partition(1), len(NEW))
    write(w, NEW)
    chip.flash[chip.row("ota_1")[2]] = 0
    asyncio.run(w.rehash())
    refuses("readback", finish, w)
    assert not rescued(chip)
