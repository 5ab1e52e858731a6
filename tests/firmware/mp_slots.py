# heap: 4M
# Slots and the writer on a chip in RAM: what may be written, armed, confirmed, and what happens
# when the flash does not do as it is told.

import asyncio
from binascii import hexlify
from hashlib import sha256

from mp import chip as c
from mp.chip import ABORTED, NEW, PENDING, SECTOR, VALID, Chip, entry, image, layout

c.modules(Chip(layout(slot=1)))

from ota import slots, writer  # noqa: E402

APP = {"app.json": "{}"}


def fresh(running=0, **options):
    chip = Chip(layout(**options))
    for row in chip.rows:
        if row[0] == 0:
            chip.store(row[4], image(APP, mark=row[1]))
    chip.flash[0:32] = entry(running + 1, VALID)
    chip.boot(1)
    return chip, on(chip)


def on(chip):
    slots.Partition = c.modules(chip)[0].Partition
    return slots.Slots()


def refuses(code, call, *args):
    try:
        call(*args)
    except slots.FlashError as error:
        assert error.code == code, error.code
        return
    raise AssertionError("went through")


def test_never_the_running_slot():
    for running in (0, 1, 2):
        chip, s = fresh(running, slots=3)
        assert s.running == running and s.count == 3
        targets = s.targets(4096, 0)
        assert running not in targets and len(targets) == 2
        refuses("no_slot", s.arm, running)
    chip, s = fresh(slots=1)
    assert s.targets(4096, 0) == [] and s.max_room() == 0


def test_targets_by_size_and_health():
    chip, s = fresh(1)
    assert s.targets(4 * SECTOR, 0) == [0] and s.max_room() == 4 * SECTOR
    assert s.targets(4 * SECTOR + 1, 0) == []
    assert s.targets(1, 0b01) == [] and s.targets(1, 0b10) == [0]


def test_from_the_factory_app():
    chip, s = fresh(factory=True)
    chip.flash[0 : 2 * SECTOR] = b"\xff" * (2 * SECTOR)
    chip.boot()
    s = on(chip)
    assert s.running == -1 and s.targets(1, 0) == [0, 1]
    s.arm(0)
    assert chip.boot()[4] == "ota_0"


def test_arm_and_confirm():
    for running in (0, 1):
        chip, s = fresh(running)
        s.arm(1 - running)
        assert s.armed() and not s.on_trial()
        assert chip.boot()[1] == 0x10 + 1 - running
        s = slots.Slots()
        assert s.on_trial() and s.trials() == 1
        refuses("no_slot", s.arm, running)
        assert s.confirm() and not s.on_trial() and not s.confirm()
        assert chip.boot()[1] == 0x10 + 1 - running


def test_arming_drops_old_trial_marks():
    chip, s = fresh(0)
    chip.flash[SECTOR : SECTOR + 32] = entry(2, ABORTED, b"\0\0" + b"\xff" * 18)
    s.arm(1)
    assert chip.entries()[1][4:24] == b"\xff" * 20


def test_arming_twice_keeps_the_old_release():
    chip, s = fresh(0)
    s.arm(1)
    s.arm(1)
    assert chip.entries()[0] == entry(1, VALID) and chip.state(1) == NEW


def test_arming_what_a_fallback_left_selected():
    chip, s = fresh(0)
    s.arm(1)
    chip.store("ota_1", bytes(64))
    assert chip.boot()[4] == "ota_0" and chip.state(1) == PENDING
    s = slots.Slots()
    assert not s.on_trial() and not s.armed()
    s.unarm()
    assert chip.entries() == [entry(1, VALID), b"\xff" * 32]
    chip.store("ota_1", image(APP))
    s.arm(1)
    assert chip.entries()[0] == entry(1, VALID) and chip.state(1) == NEW


def test_an_image_that_cannot_boot_is_not_armed():
    chip, s = fresh(0)
    chip.store("ota_1", b"\xff" * (4 * SECTOR))
    try:
        s.arm(1)
        raise AssertionError("armed")
    except OSError as error:
        assert error.errno == -5379
    assert chip.entries()[0] == entry(1, VALID) and chip.boot()[4] == "ota_0"


def test_confirm_is_not_for_a_fallback_boot():
    chip, s = fresh(0)
    s.arm(1)
    chip.store("ota_1", bytes(64))
    chip.boot()
    assert not slots.Slots().confirm() and chip.state(1) == PENDING


def test_the_digest_of_a_release():
    for files, hashed in ((APP, True), (APP, False), (None, True), (None, False)):
        chip, s = fresh()
        data = image(files, mark=9, hashed=hashed)
        chip.store("ota_0", b"\xff" * (4 * SECTOR))
        chip.store("ota_0", data)
        want = hexlify(sha256(data).digest()).decode()
        assert asyncio.run(s.digest()) == want
        assert slots.image_length(s.partition(0)) == len(data)
    chip.store("ota_0", bytes(4096))
    assert asyncio.run(s.digest()) == "" and asyncio.run(s.digest(1)) != ""


def test_image_length_of_rubbish():
    chip, s = fresh()
    part = s.partition(1)
    seed = 1
    for _ in range(300):
        for i in range(64):
            seed = (seed * 1103515245 + 12345) & 0x7FFFFFFF
            chip.flash[part.info()[2] + i] = seed >> 16 & 0xFF
        chip.flash[part.info()[2]] = 0xE9
        chip.flash[part.info()[2] + 1] &= 0x1F
        assert 0 <= slots.image_length(part) <= part.info()[3]


# -- writer


def write(w, data):
    for at in range(0, len(data), SECTOR):
        piece = data[at : at + SECTOR]
        w.buf[: len(piece)] = piece
        w.write(len(piece))


def test_writes_what_it_was_given():
    chip, s = fresh()
    for size in (1, 4095, 4096, 4097, 3 * SECTOR, 4 * SECTOR):
        data = bytes(i * 7 & 0xFF for i in range(size))
        w = writer.Writer(s.partition(1), size)
        write(w, data)
        at = chip.row("ota_1")[2]
        assert bytes(chip.flash[at : at + size]) == data and w.written == size
        assert chip.flash[at + size : at + (size + 4095 & ~4095)] == b"\xff" * (-size % 4096)
        assert w.digest() == hexlify(sha256(data).digest()).decode()


def test_decrypts_once():
    chip, s = fresh()
    seen = []

    def flip(buf, offset):
        seen.append((offset, len(buf)))
        for i in range(len(buf)):
            buf[i] ^= 0xFF

    chip.stuck[chip.row("ota_1")[2]] = 0x01  # the first try of the first sector fails, and so on
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
        if fails and address == at:
            fails.pop()
            raise OSError(-24577, "ESP_ERR_FLASH_OP_FAIL")
        program(address, data)

    chip.program = flaky
    w = writer.Writer(s.partition(1), SECTOR)
    write(w, b"\x55" * SECTOR)
    assert not fails and bytes(chip.flash[at : at + SECTOR]) == b"\x55" * SECTOR


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
    chip.flash[chip.row("ota_1")[2] + 9] = 0  # changed behind its back
    asyncio.run(w.rehash())
    write(w, data[SECTOR:])
    assert w.digest() != hexlify(sha256(data).digest()).decode()
    w.restart()
    write(w, data)
    assert w.digest() == hexlify(sha256(data).digest()).decode()


def test_the_filesystem_of_the_release_before_is_not_taken_for_its_own():
    chip, s = fresh()
    data = image(None, mark=9)  # a core as long as the old one, its app frozen in
    w = writer.Writer(s.partition(1), len(data))
    write(w, data)
    assert slots.image_length(s.partition(1)) > len(data)
    w.close()
    assert slots.image_length(s.partition(1)) == len(data)
    write(writer.Writer(s.partition(1), 4 * SECTOR), bytes(4 * SECTOR))
    w = writer.Writer(s.partition(1), 4 * SECTOR)
    write(w, b"\x22" * (4 * SECTOR))
    w.close()  # nothing behind a full slot
    chip.bad_erase.add(chip.row("ota_1")[2] // SECTOR + 1)
    w = writer.Writer(s.partition(1), 9)
    write(w, data[:9])
    refuses("erase", w.close)
