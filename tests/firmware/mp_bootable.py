# heap: 4M
# The last step of an update on a chip in RAM: what is behind the image, and the image's head.

from mp.chip import SECTOR, Cut, image, littlefs
from mp.update import (
    NEW,
    OLD,
    PAGE,
    begin,
    content,
    finish,
    refuses,
    rescued,
    same_core,
    sha,
    whole,
    write,
)
from ota.image import image_length
from wire.refused import Refused


def ready(s, data):
    w = begin(s.partition(1))
    write(w, data)
    return w


def test_the_filesystem_of_the_release_before_is_not_taken_for_its_own():
    chip, s = same_core()
    data = image(None, mark=9, segments=16)  # the core as it was, its app frozen in
    finish(ready(s, data))
    assert image_length(s.partition(1)) == len(data)
    chip, s = same_core()
    chip.bad_erase.add(chip.row("ota_1")[2] // SECTOR + 1)
    refuses("erase", finish, ready(s, data))
    assert not rescued(chip)


def test_nothing_is_erased_behind_a_full_slot():
    chip, s = same_core()
    core = image(None, mark=9, segments=16)
    data = core + b"\xff" * (-len(core) % SECTOR) + littlefs({"app.json": "{}"}, 3)
    assert len(data) == 4 * SECTOR
    finish(ready(s, data))
    assert image_length(s.partition(1)) == len(data) and rescued(chip)


def test_a_slot_that_is_not_the_signed_release_gets_no_head():
    """What counts is what flash holds; it may have changed since it was written."""
    for at in (PAGE, SECTOR - 1, SECTOR, len(NEW) - 1):
        chip, s = same_core()
        w = ready(s, NEW)
        chip.flash[chip.row("ota_1")[2] + at] ^= 1
        before = bytes(chip.flash)
        try:
            finish(w, sha(NEW))
            raise AssertionError("went through")
        except Refused as error:
            assert error.code == "checksum" and error.detail.startswith("flash holds ")
        assert chip.flash == before and not rescued(chip)
    chip, s = same_core()
    try:
        finish(ready(s, OLD), sha(NEW))
        raise AssertionError("went through")
    except Refused as error:
        assert error.code == "checksum"


def test_what_is_no_image_gets_no_head():
    """Refused while its first page is blank, so that nothing but a whole release ever boots."""
    for data in (b"\xe9" * 600, bytes(5000), NEW[:-SECTOR], NEW + bytes(SECTOR), NEW[:9]):
        chip, s = same_core()
        w = ready(s, data)
        try:
            finish(w)
            raise AssertionError("went through")
        except Refused as error:
            assert error.code == "image"
        assert content(chip)[:PAGE] == b"\xff" * PAGE and not rescued(chip)


def test_the_head_is_written_when_all_else_is_done():
    chip, s = same_core()
    w = ready(s, NEW)
    chip.ops = 0
    chip.cut = 1  # behind the image is erased, nothing more
    try:
        finish(w)
        raise AssertionError("went through")
    except Cut:
        pass
    assert not rescued(chip)


def test_a_head_that_fails_gives_up_a_slot_that_does_not_boot():
    chip, s = same_core()
    at = chip.row("ota_1")[2]
    w = ready(s, NEW)
    chip.stuck[at + 200] = 0xFF
    refuses("readback", finish, w)
    chip.stuck.clear()
    assert content(chip)[:SECTOR] == b"\xff" * SECTOR and not rescued(chip)

    for bad in (("bad_write",), ("bad_write", "bad_erase")):
        chip, s = same_core()
        w = ready(s, NEW)
        for kind in bad:
            getattr(chip, kind).add(at // SECTOR)
        refuses("write", finish, w)
        for kind in bad:
            getattr(chip, kind).clear()
        assert not rescued(chip)


def test_a_head_gets_a_second_try():
    chip, s = same_core()
    at = chip.row("ota_1")[2]
    program = chip.program
    fails = [1]

    def flaky(address, data):
        if fails and address == at:
            fails.pop()
            program(address, data[:17])
            raise OSError(-24577, "ESP_ERR_FLASH_OP_FAIL")
        program(address, data)

    w = ready(s, NEW)
    chip.program = flaky
    finish(w)
    assert not fails and whole(chip, NEW) and rescued(chip)
