# heap: 4M
# The writer on a chip in RAM: what ends up in the slot, what it keeps, what happens when the flash
# does not do as it is told, and what may boot after a power cut anywhere.

from mp.chip import SECTOR, Cut, image
from mp.update import (
    NEW,
    OLD,
    PAGE,
    begin,
    content,
    digest,
    finish,
    fresh,
    refuses,
    rescued,
    same_core,
    sha,
    whole,
    write,
)
from ota import slots


def test_writes_what_it_was_given():
    chip, s = fresh()
    for size in (1, 4095, 4096, 4097, 3 * SECTOR, 4 * SECTOR):
        data = bytes(i * 7 & 0xFF for i in range(size))
        w = begin(s.partition(1))
        write(w, data)
        at = chip.row("ota_1")[2]
        assert bytes(chip.flash[at : at + PAGE]) == b"\xff" * PAGE and w.written == size
        chip.flash[at : at + PAGE] = w.head
        assert bytes(chip.flash[at : at + size]) == data
        assert chip.flash[at + size : at + (size + 4095 & ~4095)] == b"\xff" * (-size % 4096)
        assert digest(w) == sha(data)


def test_decrypts_once():
    chip, s = fresh()
    seen = []

    def flip(buf, offset):
        seen.append((offset, len(buf)))
        for i in range(len(buf)):
            buf[i] ^= 0xFF

    chip.stuck[chip.row("ota_1")[2] + PAGE] = 0x01  # both tries of the first sector fail
    w = begin(s.partition(1), flip)
    refuses("readback", write, w, b"\xff" * 5000)
    chip.stuck.clear()
    seen.clear()
    w = begin(s.partition(1), flip)
    write(w, b"\xff" * 5000)
    assert seen == [(0, 4096), (4096, 904)]
    assert digest(w) == sha(bytes(5000))


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
    w = begin(s.partition(1))
    write(w, b"\x55" * SECTOR)
    assert not fails and content(chip)[PAGE:SECTOR] == b"\x55" * (SECTOR - PAGE)


def test_flash_that_fails_has_a_name():
    chip, s = fresh()
    at = chip.row("ota_1")[2]
    chip.bad_write.add(at // SECTOR)
    refuses("write", write, begin(s.partition(1)), b"\x55" * SECTOR)
    chip.bad_erase.add(at // SECTOR)
    refuses("erase", write, begin(s.partition(1)), b"\x55" * SECTOR)
    chip.stuck[at + SECTOR + 5] = 0x80
    w = begin(s.partition(1))
    chip.bad_erase.clear()
    chip.bad_write.clear()
    refuses("readback", write, w, b"\x55" * (2 * SECTOR))
    assert w.written == SECTOR


def test_what_counts_is_what_flash_holds_in_the_end():
    chip, s = fresh()
    data = b"\x11" * (2 * SECTOR)
    w = begin(s.partition(1))
    write(w, data)
    assert digest(w) == sha(data)
    chip.flash[chip.row("ota_1")[2] + PAGE + 9] = 0  # changed behind its back
    assert digest(w) != sha(data)
    w.restart()
    write(w, data)
    assert digest(w) == sha(data) and w.cost == [4 * SECTOR, 1, 3]


def test_a_power_cut_anywhere_leaves_nothing_half_written_that_boots():
    last = None
    cut = old = new = 0
    while last is None or cut < last:
        for torn in (0, 1, 40, PAGE - 1):
            chip, s = same_core()
            w = begin(s.partition(1))
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
    # Two sectors of three differ; then the one behind them, and the head.
    assert last == 6 and old == 4 and new == 4  # before the first operation, and after the last


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
            w = begin(s.partition(1), opener)
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
        w = begin(s.partition(1))
        write(w, NEW[: stop * SECTOR])
        assert rescued(chip) == (not stop)
    chip, s = same_core()
    w = begin(s.partition(1))
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
        refuses(code, write, begin(s.partition(1)), NEW)
        chip.stuck.clear()
        chip.bad_write.clear()
        assert not rescued(chip)


def test_a_head_that_is_no_longer_blank_is_found_out():
    chip, s = same_core()
    w = begin(s.partition(1))
    write(w, NEW)
    chip.flash[chip.row("ota_1")[2]] = 0
    refuses("readback", finish, w, sha(NEW))
    assert not rescued(chip)


# Has a writer take all sectors from a partition.
def take(w, source, size):
    while w.written < size:
        w.write(min(SECTOR, size - w.written), source)


def test_a_sector_that_is_right_already_is_kept():
    chip, s = fresh()
    chip.store("ota_1", NEW)
    seen = watch(chip, chip.row("ota_1")[2])
    w = begin(s.partition(1))
    write(w, NEW)
    assert seen == [("erase", 0), ("program", PAGE, SECTOR - PAGE)], "the first is always written"
    assert w.cost == [len(NEW), len(NEW) // SECTOR - 1, 1] and digest(w) == sha(NEW)
    again = begin(s.partition(1))
    write(again, NEW)
    assert len(seen) == 2 and again.cost[2] == 0, "its first page is blank by now"
    finish(again, sha(NEW))
    assert whole(chip, NEW)


def test_one_bit_is_reason_to_write_a_sector():
    for at in (PAGE, SECTOR, 2 * SECTOR - 1, len(NEW) - 1):
        chip, s = fresh()
        chip.store("ota_1", NEW)
        write(begin(s.partition(1)), NEW)
        chip.flash[chip.row("ota_1")[2] + at] ^= 1
        w = begin(s.partition(1))
        write(w, NEW)
        assert w.cost[2] == 1 and digest(w) == sha(NEW)


def test_takes_sectors_from_the_running_slot():
    for data in (NEW, NEW[: SECTOR + 700]):
        chip, s = fresh()
        chip.store("ota_0", data)
        chip.store("ota_1", bytes(3 * SECTOR))
        w = begin(s.partition(1), lambda buf, offset: 1 / 0)  # what is here is plain
        take(w, s.partition(0), len(data))
        assert w.cost == [0, 0, (len(data) + SECTOR - 1) // SECTOR]
        assert w.written == len(data) and digest(w) == sha(data)
        w = begin(s.partition(1))
        take(w, s.partition(0), len(data))
        assert w.cost == [0, (len(data) + SECTOR - 1) // SECTOR, 0]
