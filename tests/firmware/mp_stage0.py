# heap: 4M
# Stage 0 on a chip in RAM: trial marks over every power cut, the app behind the core, rescue.

import json

from mp import chip as c
from mp.chip import ABORTED, NEW, PENDING, SECTOR, VALID, Chip, Cut, Reset, entry, image, layout

APP = {"main.py": "def run():\n    pass\n", "app.json": "{}"}


def two_slots(slots=2, factory=False):
    chip = Chip(layout(factory=factory, slots=slots))
    for row in chip.rows:
        if row[0] == 0:
            chip.store(row[4], image(APP, mark=row[1]))
    return chip


# Erases the inactive sector, then arms the slot: what the app does at the end of an update.
def arm(chip, label):
    a = chip.active()
    if a >= 0:
        chip.erase((1 - a) * SECTOR)
    chip.set_boot(chip.row(label))


def fresh(old):
    chip = two_slots()
    chip.flash[0:32] = entry(old + 1, VALID)
    chip.boot(1)
    assert chip.running[4] == "ota_%d" % old
    return chip


def test_first_boot_of_a_blank_otadata():
    chip = two_slots()
    chip.boot(1)
    scope = chip.start()
    assert chip.path == ["/app", ".frozen/app", ".frozen"] and scope["crashes"] == 0
    assert c.listdir("/app") == ["app.json", "main.py"]
    assert chip.wdt == 60_000 and chip.timer is None


def test_three_trials_then_back():
    for old in (0, 1):
        chip = fresh(old)
        arm(chip, "ota_%d" % (1 - old))
        trials = 0
        while chip.boot() and chip.running[4] != "ota_%d" % old:
            chip.start()
            trials += 1
            assert chip.wdt == 60_000 and chip.timer[0] == 900_000
            assert trials <= 3
        assert trials == 3
        a = chip.active()
        assert chip.slot_of(a) == old and chip.state(a) == VALID
        chip.start()
        assert chip.timer is None


def test_guard_resets_an_unconfirmed_trial_only():
    chip = fresh(0)
    arm(chip, "ota_1")
    chip.boot()
    chip.start()
    late = chip.timer[1]
    try:
        late(None)
        raise AssertionError("still running")
    except Reset:
        pass
    chip.mark_valid()
    late(None)


# Runs boots until two in a row change nothing. `confirm` is the number of the trial boot that
# marks itself valid, 0 for never. Returns (trial boots, slot that runs).
def settle(chip, old, confirm):
    trials = 0
    last = None
    for _ in range(12):
        before = bytes(chip.flash[: 2 * SECTOR])
        row = chip.boot()
        chip.start()
        a = chip.active()
        if row[1] == 0x10 + chip.slot_of(a) and chip.state(a) != VALID:
            trials += 1
            if trials == confirm:
                chip.mark_valid()
        if last == row and before == bytes(chip.flash[: 2 * SECTOR]):
            return trials, row
        last = row
    raise AssertionError("never settles")


# The whole of arming, three trials and confirming, with the power cut at every flash operation,
# before it and within it. Whatever happens, at most three trials, and a VALID slot at the end.
def test_every_power_cut():
    for old in (0, 1):
        for confirm in (0, 1, 2, 3):
            for torn in (0, 1, 5, 25, 27, 31):
                cut = 0
                while True:
                    chip = fresh(old)
                    chip.ops = 0
                    chip.cut = cut
                    chip.torn = torn
                    done = run_until_cut(chip, old, confirm)
                    check_end(chip, old)
                    if done:
                        break
                    cut += 1
                assert cut > 4


def run_until_cut(chip, old, confirm):
    try:
        arm(chip, "ota_%d" % (1 - old))
        settle(chip, old, confirm)
        return True
    except Cut:
        chip.cut = -1
    trials, _ = settle(chip, old, confirm)
    assert trials <= 3
    return False


def check_end(chip, old):
    a = chip.active()
    assert a >= 0 and chip.state(a) == VALID
    assert chip.running[1] == 0x10 + chip.slot_of(a)


def test_a_count_that_does_not_stick_arms_nothing():
    chip = fresh(0)
    arm(chip, "ota_1")
    chip.boot()
    chip.stuck[SECTOR + 4] = 0x10  # this bit never programs
    chip.start()
    assert chip.state(1) == PENDING
    assert chip.boot()[4] == "ota_0" and chip.state(1) == ABORTED


def test_a_fallback_boot_touches_nothing():
    chip = fresh(0)
    arm(chip, "ota_1")
    chip.store("ota_1", bytes(64))  # the image broke after it was armed
    assert chip.boot()[4] == "ota_0"
    before = bytes(chip.flash)
    chip.start()
    assert bytes(chip.flash) == before and chip.timer is None
    assert chip.state(1) == PENDING


def test_soft_reset_burns_no_second_mark():
    chip = fresh(0)
    arm(chip, "ota_1")
    chip.boot()
    chip.start()
    before = bytes(chip.flash)
    chip.cause = 5
    chip.start()
    assert bytes(chip.flash) == before and chip.state(1) == NEW


def test_layouts_without_otadata_or_slots():
    chip = Chip(layout(factory=True, ota=False, slots=0))
    chip.store("factory", image(APP))
    chip.boot(1)
    chip.start()
    assert chip.path == ["/app", ".frozen/app", ".frozen"]
    chip = two_slots(factory=True)
    assert chip.boot(1)[4] == "factory"
    chip.start()
    assert chip.path == ["/app", ".frozen/app", ".frozen"] and chip.active() == -1


def test_a_core_without_a_tail_has_its_app_frozen():
    for files in (None, {}):
        chip = Chip(layout())
        chip.store("ota_0", image(files))
        chip.boot(1)
        chip.start()
        assert chip.path == ([] if files is None else ["/app"]) + [".frozen/app", ".frozen"]


def test_images_of_every_shape():
    for segments in (0, 1, 3, 16):
        for hashed in (True, False):
            chip = Chip(layout())
            chip.store("ota_0", image(APP, segments=segments, hashed=hashed))
            chip.boot(1)
            chip.start()
            assert c.listdir("/app") == ["app.json", "main.py"], (segments, hashed)


def test_a_broken_filesystem():
    chip = two_slots()
    chip.boot(1)
    at = chip.row("ota_0")[2] + SECTOR
    for first, last in ((0, 8), (12, 24), (28, 32), (32, 4096), (0, 4096)):
        spoilt = bytes(chip.flash[at : at + 2 * SECTOR])
        for block in (0, SECTOR):
            for i in range(at + block + first, at + block + last):
                chip.flash[i] ^= 0x5A
        chip.start()
        frozen = [".frozen/app", ".frozen"]
        assert chip.path in ([], frozen, ["/app"] + frozen), chip.path
        chip.flash[at : at + 2 * SECTOR] = spoilt
    chip.start()
    assert c.listdir("/app") == ["app.json", "main.py"]


def test_a_trial_that_cannot_mount_resets():
    chip = fresh(0)
    arm(chip, "ota_1")
    at = chip.row("ota_1")[2] + SECTOR
    for block in (0, SECTOR):
        for i in range(32, 4096):
            chip.flash[at + block + i] = 0x5A
    chip.boot()
    try:
        chip.start()
        raise AssertionError("went on")
    except Reset:
        assert chip.state(1) == NEW and chip.timer


# -- rescue


def crash(chip, times):
    for _ in range(times):
        chip.boot()
        try:
            chip.start()
        except Reset:
            return True
    return False


def test_eight_crashes_give_the_other_slot_a_trial():
    chip = fresh(0)
    assert not crash(chip, 7)
    assert crash(chip, 1)
    assert c.journal(chip)[-1][2:] == ["boot", "rescue", "ota_1: 8 resets, the last by cause 2"]
    assert chip.boot()[4] == "ota_1"
    chip.start()
    assert chip.timer and chip.nvs[("beacon", "crashes")] == 8
    chip.mark_valid()
    assert settle(chip, 0, 0)[1][4] == "ota_1"


def test_rescue_gives_up_a_slot_that_is_no_better():
    chip = fresh(0)
    boots = [crash(chip, 1) for _ in range(70)]
    # 8 crashes, three trials of the other slot, then twice as many crashes, and so on.
    rescues = [i for i, rescued in enumerate(boots) if rescued]
    assert rescues == [7, 18, 37, 72][: len(rescues)] and len(rescues) == 3, rescues
    assert chip.boot()[4] == "ota_0"


def test_no_rescue_into_a_slot_that_cannot_run():
    for wreck in (b"", b"\xff" * 64, image(None)):
        chip = fresh(0)
        chip.store("ota_1", b"\xff" * (4 * SECTOR))
        chip.store("ota_1", wreck)
        before = bytes(chip.flash)
        assert not crash(chip, 20)
        assert bytes(chip.flash) == before


def test_rescue_falls_back_to_the_factory_app():
    chip = two_slots(factory=True)
    chip.flash[0:32] = entry(1, VALID)
    chip.store("ota_1", b"\xff" * (4 * SECTOR))
    assert chip.boot(1)[4] == "ota_0"
    assert crash(chip, 8)
    assert chip.boot()[4] == "factory"
    chip.start()
    assert c.journal(chip)[-1][4] == "factory: 8 resets, the last by cause 2"


def test_rescue_never_arms_the_slot_that_otadata_selects():
    chip = fresh(0)
    arm(chip, "ota_1")
    chip.mark_valid()  # confirmed once
    at = chip.row("ota_1")[2]
    chip.flash[at + 40] ^= 1  # then its core broke
    chip.nvs[("beacon", "crashes")] = 7
    assert chip.boot()[4] == "ota_0"
    before = bytes(chip.flash[: 2 * SECTOR])
    chip.start()
    assert bytes(chip.flash[: 2 * SECTOR]) == before


def test_power_on_is_no_crash():
    chip = fresh(0)
    for _ in range(20):
        chip.boot(1)
        chip.start()
    assert ("beacon", "crashes") not in chip.nvs


def test_the_journal_survives_rubbish_in_its_ring():
    chip = fresh(0)
    scope = chip.start()
    chip.nvs[("beacon", "journal3")] = b"\xff\x00"
    chip.nvs[("beacon", "journal4")] = b"[]"
    chip.nvs[("beacon", "journal5")] = b'["x"]'
    chip.nvs[("beacon", "journal6")] = bytes(600)
    chip.nvs[("beacon", "journal1")] = b'[41, 0, "wifi", "drop", ""]'
    scope["journal_write"]("crash", "x" * 200)
    seq, _, stage, code, detail = json.loads(chip.nvs[("beacon", "journal2")])
    assert (seq, stage, code, detail) == (42, "boot", "crash", "x" * 80)
