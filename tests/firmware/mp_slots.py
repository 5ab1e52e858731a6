# heap: 4M
# Slots on a chip in RAM: what may be written, armed and confirmed.

import asyncio
from binascii import hexlify
from hashlib import sha256

from mp import chip as c
from mp.chip import ABORTED, NEW, PENDING, SECTOR, VALID, Chip, entry, image, layout

c.modules(Chip(layout(slot=1)))

from ota import slots  # noqa: E402
from ota.image import image_length  # noqa: E402

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
        targets = s.target_slots(4096, 0)
        assert running not in targets and len(targets) == 2
        refuses("no_slot", s.arm, running)
    chip, s = fresh(slots=1)
    assert s.target_slots(4096, 0) == [] and s.max_capacity() == 0


def test_targets_by_size_and_health():
    chip, s = fresh(1)
    assert s.target_slots(4 * SECTOR, 0) == [0] and s.max_capacity() == 4 * SECTOR
    assert s.target_slots(4 * SECTOR + 1, 0) == []
    assert s.target_slots(1, 0b01) == [] and s.target_slots(1, 0b10) == [0]


def test_from_the_factory_app():
    chip, s = fresh(factory=True)
    chip.flash[0 : 2 * SECTOR] = b"\xff" * (2 * SECTOR)
    chip.boot()
    s = on(chip)
    assert s.running == -1 and s.target_slots(1, 0) == [0, 1]
    s.arm(0)
    assert chip.boot()[4] == "ota_0"


def test_arm_and_confirm():
    for running in (0, 1):
        chip, s = fresh(running)
        s.arm(1 - running)
        assert s.is_armed() and not s.is_on_trial()
        assert chip.boot()[1] == 0x10 + 1 - running
        s = slots.Slots()
        assert s.is_on_trial() and s.trial_number() == 1
        refuses("no_slot", s.arm, running)
        assert s.confirm() and not s.is_on_trial() and not s.confirm()
        assert chip.boot()[1] == 0x10 + 1 - running


def test_arming_drops_old_trial_marks():
    chip, s = fresh(0)
    chip.flash[SECTOR : SECTOR + 32] = entry(2, ABORTED, b"\0\0" + b"\xff" * 18)
    s.arm(1)
    assert chip.entries()[1][4:24] == b"\xff" * 20


def test_nothing_stale_is_left_to_speak_of_a_slot():
    for running in (0, 1):
        for state in (ABORTED, VALID, NEW):
            chip, s = fresh(running)
            other = entry(running + 2, state, b"\0\0" + b"\xff" * 18)
            chip.flash[SECTOR : SECTOR + 32] = other
            s.erase_stale_entries()
            assert chip.entries() == [entry(running + 1, VALID), b"\xff" * 32]
            before = chip.ops
            s.erase_stale_entries()
            assert chip.ops == before, "flash wears"
            s.arm(1 - running)
            assert chip.ops == before + 2, "set_boot's own erase and write"
    # From a factory app, or after a fallback, no entry speaks for what runs.
    chip, s = fresh(factory=True)
    chip.flash[0:32] = entry(1, ABORTED)
    chip.flash[SECTOR : SECTOR + 32] = entry(4, ABORTED)
    chip.boot()
    s = on(chip)
    assert s.running == -1
    s.erase_stale_entries()
    assert chip.entries() == [b"\xff" * 32] * 2


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
    assert not s.is_on_trial() and not s.is_armed()
    s.disarm()
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
        assert image_length(s.partition(0)) == len(data)
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
        assert 0 <= image_length(part) <= part.info()[3]
