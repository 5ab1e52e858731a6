# heap: 4M
# Stage 0 where something is broken besides the release: NVS above all, in every scenario of
# mp_stage0. A boot ends with an app to import, with the reason why there is none for main.py to
# reset with, or in a reset; never without a search path, and never at the prompt.

import json

import mp_stage0
from mp import chip as c
from mp.chip import ABORTED, SECTOR, Chip, Cut, Reset, image
from mp_stage0 import arm, check_end, crash, fresh

FROZEN = [".frozen/app", ".frozen"]
MODES = ("nvs_full", "nvs_worn", "nvs_broken")
# Scenarios about what NVS has to keep; they are walked through, and their own checks do not count.
OF_NVS = (
    "test_eight_crashes_give_the_other_slot_a_trial",
    "test_rescue_falls_back_to_the_factory_app",
    "test_rescue_gives_up_a_slot_that_is_no_better",
    "test_the_journal_survives_rubbish_in_its_ring",
)


# A chip on which one thing is wrong, and whose every boot is checked.
def faulty(mode):
    class Faulty(Chip):
        def __init__(self, rows):
            Chip.__init__(self, rows)
            setattr(self, mode, True)

        def start(self):
            scope = Chip.start(self)
            check_start(self, scope)
            return scope

    return Faulty


def check_start(chip, scope):
    assert chip.path in (["/app"] + FROZEN, FROZEN), chip.path
    if chip.path != FROZEN:
        assert scope["failure"] is None and c.listdir("/app") is not None
    assert scope["journal_write"] and scope["crashes"] >= 0
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
        assert name not in scope


def test_every_scenario_on_an_nvs_that_takes_nothing():
    walked = 0
    for mode in MODES:
        mp_stage0.Chip = faulty(mode)
        try:
            for name in dir(mp_stage0):
                if not name.startswith("test_") or name == "test_every_power_cut":
                    continue
                walked += 1
                try:
                    getattr(mp_stage0, name)()
                except AssertionError as error:
                    if name not in OF_NVS:
                        raise AssertionError("%s: %s: %s" % (mode, name, error))
                except LookupError:  # an entry or a number that is not there
                    assert name in OF_NVS, (mode, name)
        finally:
            mp_stage0.Chip = Chip
    assert walked >= 50


def test_a_confirmed_release_starts_after_every_cause_of_a_reset():
    for mode in MODES:
        chip = fresh(0)
        setattr(chip, mode, True)
        for cause in range(6):
            for _ in range(20):
                chip.boot(cause)
                scope = chip.start()
                assert chip.path == ["/app"] + FROZEN and chip.timer is None, (mode, cause)
                chip.rtc = b""
                assert scope["crashes"] <= 1
        assert chip.running[4] == "ota_0"


# RTC memory counts where NVS does not; where neither does, a count that stands still at 7 must not
# make an eighth of every reset.
def test_crashes_are_counted_all_the_same():
    for mode in MODES:
        chip = fresh(0)
        chip.nvs[("beacon", "crashes")] = 7
        setattr(chip, mode, True)
        boots = [crash(chip, 1) for _ in range(70)]
        assert [i for i, rescued in enumerate(boots) if rescued] == [7, 18, 37], mode
        assert chip.boot()[4] == "ota_0"
        chip.boot(1)
        assert not crash(chip, 7), mode
        chip.rtc = b"crashes\xff"
        assert not crash(chip, 20), mode
        for junk in (b"", b"crashes", b"others\x07\x07", bytes(2048)):
            chip.rtc = junk
            assert not crash(chip, 1) and chip.rtc == b"crashes\x01" + junk[8:], (mode, junk)
        chip.rtc = b"crashes\x02guess"  # what is the app's stays
        assert not crash(chip, 1) and chip.rtc == b"crashes\x03guess", mode


def test_a_count_that_cannot_be_kept_rescues_nobody():
    for mode in MODES:
        chip = fresh(0)
        chip.nvs[("beacon", "crashes")] = 7
        chip.failing = {"rtc"}
        setattr(chip, mode, True)
        before = bytes(chip.flash)
        assert not crash(chip, 40), mode
        assert bytes(chip.flash) == before


def test_an_entry_is_newer_than_what_was_delivered():
    chip = fresh(0)
    scope = chip.start()
    chip.nvs[("beacon", "jrn_ack")] = 50
    scope["journal_write"]("crash", "x")
    assert c.journal(chip)[-1][0] == 51


def test_a_full_journal_takes_a_crash_in_the_place_of_its_oldest():
    chip = fresh(0)
    scope = chip.start()
    for seq in range(1, 9):
        chip.nvs[("beacon", "journal%d" % (seq % 8))] = json.dumps([seq, 0, "a", "b", ""]).encode()
    chip.nvs_full = True
    scope["journal_write"]("crash", "x")
    assert [entry[0] for entry in c.journal(chip)] == list(range(2, 10))
    assert c.journal(chip)[-1][2:] == ["boot", "crash", "x"]


def test_numbers_of_crashes_that_make_no_sense():
    for number in (-5, -(1 << 31), (1 << 31) - 1, b"7"):
        chip = fresh(0)
        chip.nvs[("beacon", "crashes")] = number
        chip.boot()
        assert chip.start()["crashes"] == 1, number
        assert chip.nvs[("beacon", "crashes")] == 1


def test_entries_that_make_no_sense():
    chip = fresh(0)
    scope = chip.start()
    huge = b"[99999999999999999999]"
    rubbish = (b'{"a": 1}', b"[1e999]", huge, b"[true]", b"[null]", b"5", b"[-9]")
    for i, text in enumerate(rubbish):
        chip.nvs[("beacon", "journal%d" % i)] = text
    chip.nvs[("beacon", "journal7")] = json.dumps([7, 0, "a", "b", "\x01" * 80]).encode()
    scope["journal_write"]("crash", "x")
    seq, _, stage, code, detail = json.loads(chip.nvs[("beacon", "journal0")])
    assert (seq, stage, code, detail) == (8, "boot", "crash", "x")


# -- trials


# Without its limits a trial ends at once; the bootloader does the rest.
def test_a_trial_without_its_limits_is_over():
    for what in ("wdt", "timer"):
        chip = fresh(0)
        arm(chip, "ota_1")
        chip.failing = {what}
        trials = 0
        while chip.boot()[4] == "ota_1":
            trials += 1
            assert ends_in_a_reset(chip.start), what
        assert trials == 3
        chip.start()
        assert chip.path == ["/app"] + FROZEN


# Nothing that the app, its filesystem or stage 0 itself does before the app has its own watchdog
# holds the chip for ever, and a watchdog that cannot be had keeps no confirmed app from starting.
def test_every_boot_has_a_watchdog_before_anything_is_read():
    chip = fresh(0)
    seen = []
    chip.reads = lambda: seen.append(chip.wdt)
    for cause in range(1, 6):
        chip.boot(cause)
        chip.start()
    assert len(seen) >= 10 and set(seen) == {60_000}
    chip = fresh(0)
    chip.failing = {"wdt"}
    chip.boot()
    chip.start()
    assert chip.path == ["/app"] + FROZEN and chip.wdt is None


def test_a_mark_that_cannot_be_written_ends_the_trial():
    chip = fresh(0)
    arm(chip, "ota_1")
    chip.boot()
    chip.bad_write = {1}
    assert ends_in_a_reset(chip.start)
    chip.bad_write = set()
    assert chip.boot()[4] == "ota_0" and chip.state(1) == ABORTED


# Damaged label bytes must not make the same mark count for every trial.
def test_every_trial_burns_a_byte_of_its_own():
    for label in (b"\xff\x00", b"\x7f\xff", b"\x00\x00"):
        chip = fresh(0)
        arm(chip, "ota_1")
        chip.flash[SECTOR + 4 : SECTOR + 6] = label
        trials = 0
        while chip.boot()[4] == "ota_1":
            chip.start()
            trials += 1
            assert trials <= 3, label
        assert trials == 1 + label.count(b"\xff")


def test_otadata_that_cannot_be_read_keeps_no_app_from_starting():
    for cause in (1, 2, 3):
        chip = fresh(0)
        chip.nvs[("beacon", "crashes")] = 7
        chip.failing = {"otadata"}
        before = bytes(chip.flash)
        chip.boot(cause)
        chip.start()
        assert chip.path == ["/app"] + FROZEN and bytes(chip.flash) == before


# The callback of the time limit finds a heap without room, and a flash that cannot be read.
def test_the_time_limit_believes_only_what_it_reads():
    chip = fresh(0)
    arm(chip, "ota_1")
    chip.boot()
    chip.start()
    late = chip.timer[1]
    chip.mark_valid()
    late(None)
    late(None)
    chip.failing = {"otadata"}
    assert ends_in_a_reset(lambda: late(None))


def test_a_trial_that_cannot_mount_says_so():
    chip = fresh(0)
    arm(chip, "ota_1")
    spoil(chip, "ota_1")
    chip.boot()
    assert ends_in_a_reset(chip.start)
    assert c.journal(chip)[-1][2:4] == ["boot", "crash"] and "mount" in c.journal(chip)[-1][4]


# -- rescue


def test_a_rescue_says_what_the_last_reset_was():
    for cause, word in ((3, "watchdog"), (2, "cause 2"), (0, "cause 0")):
        chip = fresh(0)
        assert not crash(chip, 7)
        chip.boot(cause)
        assert ends_in_a_reset(chip.start)
        assert c.journal(chip)[-1][4] == "ota_1: 8 resets, the last by " + word
    label = "a" * 16  # a partition's longest
    assert len("%s: %d resets, the last by watchdog" % (label, 1 << 30)) <= 80


# The power is cut at every operation of a rescue: the old slot runs, or the other one on trial.
def test_a_rescue_that_is_cut_leaves_something_to_boot():
    for old in (0, 1):
        for torn in (0, 1, 5, 25, 27, 31):
            cut = 0
            while True:
                chip = fresh(old)
                chip.nvs[("beacon", "crashes")] = 7
                chip.ops = 0
                chip.cut = cut
                chip.torn = torn
                chip.boot()
                try:
                    chip.start()
                except Cut:
                    done = False
                except Reset:
                    done = True
                chip.cut = -1
                trials = 0
                for _ in range(6):
                    trials += chip.boot()[4] != "ota_%d" % old
                    ends_in_a_reset(chip.start)
                assert trials <= 3
                check_end(chip, old)
                if done:
                    break
                cut += 1
            assert cut > 2


# Erase and program fail one after the other: what otadata selects stays what it was.
def test_a_rescue_that_fails_changes_no_choice():
    for kind in ("bad_erase", "bad_write"):
        for old in (0, 1):
            chip = fresh(old)
            chip.nvs[("beacon", "crashes")] = 7
            a = chip.active()
            setattr(chip, kind, {1 - a})
            chip.boot()
            chip.start()
            assert chip.path == ["/app"] + FROZEN
            assert chip.active() == a and chip.slot_of(a) == old
            assert chip.boot()[4] == "ota_%d" % old


# -- main.py


def app(chip, source):
    at = "ota_0"
    chip.store(at, b"\xff" * (4 * SECTOR))
    chip.store(at, image({"main.py": source}))
    chip.boot()
    return chip.start()


FILLS = "    while True:\n        held.append(bytearray(999))\n"
ODD = "class Odd(%s):\n    def __str__(self):\n        raise OSError\ndef run():\n    raise Odd\n"


def test_whatever_ends_an_app_ends_in_a_reset():
    for source, words in (
        ("def run():\n    raise ValueError('no')\n", "ValueError: no"),
        ("def run():\n    pass\n", "RuntimeError: main returned"),
        ("import nothing_there\n", "ImportError"),
        ("import sys\ndef run():\n    sys.exit(1)\n", "SystemExit"),
        ("import sys\nsys.exit()\n", "SystemExit"),
        ("def run():\n    raise GeneratorExit\n", "GeneratorExit"),
        ("def run(\n", "SyntaxError"),
        ("def run():\n    held = []\n" + FILLS, "MemoryError"),
        ("held = []\ndef run():\n" + FILLS, "MemoryError"),
    ):
        chip = fresh(0)
        scope = app(chip, source)
        assert chip.finish(scope) == 1
        entry = c.journal(chip)[-1]
        assert entry[2:4] == ["boot", "crash"] and words in entry[4], (source, entry)


def test_errors_that_cannot_be_told():
    for kind in ("Exception", "BaseException"):
        chip = fresh(0)
        chip.finish(app(chip, ODD % kind))


def test_main_without_what_boot_defines():
    chip = fresh(0)
    chip.boot()
    for gone in (
        ("journal_write",),
        ("crashes",),
        ("failure",),
        ("journal_write", "crashes", "failure"),
    ):
        scope = chip.start()
        for name in gone:
            del scope[name]
        chip.finish(scope)


def test_an_app_that_ends_on_an_nvs_that_takes_nothing():
    for mode in MODES:
        chip = fresh(0)
        setattr(chip, mode, True)
        scope = app(chip, "def run():\n    raise ValueError('no')\n")
        assert chip.finish(scope) == 1


def test_an_app_that_cannot_be_mounted_is_the_reason_of_the_reset():
    chip = fresh(0)
    spoil(chip, "ota_0")
    chip.boot(1)
    scope = chip.start()
    assert chip.path == FROZEN and scope["failure"]
    assert chip.finish(scope) == 0
    assert "OSError" in c.journal(chip)[-1][4]
    assert crash(chip, 8) and chip.boot()[4] == "ota_1"


def test_the_console_gets_the_prompt():
    chip = fresh(0)
    scope = app(chip, "def run():\n    raise KeyboardInterrupt\n")
    try:
        chip.finish(scope)
        raise AssertionError("it was reset")
    except KeyboardInterrupt:
        pass


# -- helpers


def spoil(chip, label):
    at = chip.row(label)[2] + SECTOR
    for block in (0, SECTOR):
        for i in range(32, 4096):
            chip.flash[at + block + i] = 0x5A


def ends_in_a_reset(act):
    try:
        act()
    except Reset:
        return True
    return False
