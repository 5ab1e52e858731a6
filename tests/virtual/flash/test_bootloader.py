"""Slot choice: equal to the oracle on any otadata, and the tables of what it means."""

import random
import struct

import pytest

from beacon_ota.images import partitions, synthetic
from beacon_ota.images.partitions import Partition, Table
from beacon_ota.virtual.flash import bootloader, otadata
from beacon_ota.virtual.flash.bootloader import NotBootable
from beacon_ota.virtual.flash.nor import Flash, FlashError, PowerCut, PowerCutPoint
from tests.virtual import oracle

OTADATA = 0x2000
SLOT = 0x10000
STATES = {
    "new": 0,
    "pending": 1,
    "valid": 2,
    "invalid": 3,
    "aborted": 4,
    "undefined": 0xFFFFFFFF,
}
APP = synthetic.app_image(2048)


def layout(slots: int, factory: bool = False, has_otadata: bool = True) -> Table:
    """A table with tiny places for everything, in the order the oracle assumes."""
    rows = [Partition("otadata", 1, 0, OTADATA, 0x2000)] if has_otadata else []
    at = SLOT
    if factory:
        rows.append(Partition("factory", 0, 0, at, SLOT))
        at += SLOT
    for number in range(slots):
        rows.append(Partition(f"ota_{number}", 0, 0x10 + number, at, SLOT))
        at += SLOT
    return Table(tuple(rows))


def chip(table: Table, sectors: bytes, ok) -> Flash:
    """A flash with this otadata, and images in the slots of ``ok`` (-1 is factory)."""
    flash = Flash.blank(SLOT * (len(table) + 2), record=True)
    flash.overwrite(OTADATA, sectors)
    for part in table:
        number = -1 if part.subtype == 0 else part.slot
        if part.type == 0 and number in ok:
            flash.overwrite(part.offset, APP)
    return flash


def sectors(*entries) -> bytes:
    """otadata from (seq, state) pairs, None for a blank entry, bytes for anything else."""
    raw = bytearray(b"\xff" * 0x2000)
    for number, given_entry in enumerate(entries):
        if given_entry is None:
            continue
        if isinstance(given_entry, bytes):
            packed = given_entry
        else:
            seq, state = given_entry
            packed = struct.pack("<I20sII", seq, b"\xff" * 20, STATES[state], oracle.crc(seq))
        raw[number * 0x1000 : number * 0x1000 + len(packed)] = packed
    return bytes(raw)


BAD = struct.pack("<I20sII", 1, b"\xff" * 20, 2, 0x12345678)


def shown(flash: Flash) -> list[str]:
    return [str(entry) for entry in otadata.read_entries(flash, OTADATA)]


# Random cases against the oracle.

CASES = 4000


def random_entry(rng: random.Random) -> bytes:
    """Mostly what ESP-IDF writes, sometimes anything."""
    kind = rng.random()
    if kind < 0.15:
        return b"\xff" * 32
    if kind < 0.2:
        return struct.pack("<I", rng.getrandbits(31)) + rng.randbytes(28)
    seq = rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0xFFFFFFFF])
    label = b"\xff" * 20 if rng.random() < 0.5 else rng.randbytes(20)
    state = rng.choice([*STATES.values(), rng.getrandbits(32)])
    crc = oracle.crc(seq) if rng.random() < 0.8 else rng.getrandbits(32)
    return struct.pack("<I20sII", seq, label, state, crc)


def cases(seed: str):
    """Random otadata, slots, images and power cuts."""
    rng = random.Random(seed)
    for _ in range(CASES):
        yield {
            "first": random_entry(rng),
            "second": random_entry(rng),
            "slots": rng.randrange(5),
            "factory": rng.random() < 0.5,
            "has_otadata": rng.random() < 0.9,
            "rollback": rng.random() < 0.8,
            "good": {slot for slot in range(-1, 4) if rng.random() < 0.6},
            "cut": rng.choice([-1, -1, *range(8)]),
            "target": rng.randrange(6),
        }


def prepare(case):
    raw = sectors(case["first"], case["second"])
    slots = case["slots"]
    here = set(range(slots)) | ({-1} if case["factory"] else set())
    ok = case["good"] & here
    table = layout(slots, case["factory"], case["has_otadata"])
    flash = chip(table, raw, ok)
    if case["cut"] >= 0:
        flash.cut = PowerCutPoint(case["cut"])
    return oracle.Sectors(raw, case["cut"]), table, flash, ok


def compare(model: oracle.Sectors, flash: Flash, expected, found):
    try:
        want = expected()
    except oracle.Cut:
        want = "cut"
    try:
        got = found()
    except PowerCut:
        got = "cut"
    assert got == want
    assert flash.read(OTADATA, 0x2000) == bytes(model.d)
    done = [(op.kind, (op.offset - OTADATA) // 0x1000) for op in flash.journal]
    assert done == model.ops


def boots(case):
    model, table, flash, ok = prepare(case)
    how = case["rollback"]
    compare(
        model,
        flash,
        lambda: oracle.boot(model, case["slots"], case["factory"], ok, how, case["has_otadata"]),
        lambda: bootloader.choose_slot(flash, table, [], rollback=how),
    )


def sets_boot(case):
    model, table, flash, ok = prepare(case)
    sub = 0x10 + case["target"] - 1 if case["target"] else 0
    part = Partition("target", 0, sub, SLOT, SLOT)
    how = case["rollback"]
    compare(
        model,
        flash,
        lambda: oracle.set_boot(model, case["slots"], ok, sub, how, case["has_otadata"]),
        lambda: otadata.set_boot(
            flash,
            table,
            part,
            lambda part: (-1 if part.subtype == 0 else part.slot) in ok,
            rollback=how,
        ),
    )


def marks_valid(case):
    model, table, flash, _ = prepare(case)
    if case["has_otadata"]:
        part = otadata.boot_partition(flash, table)
        want = oracle.boot_partition(model, case["slots"], case["factory"])
        assert (part.subtype if part else None) == want
    compare(
        model,
        flash,
        lambda: oracle.mark_valid(model, case["slots"], case["has_otadata"]),
        lambda: otadata.mark_valid(flash, table),
    )


@pytest.mark.parametrize("operation", [boots, sets_boot, marks_valid])
def test_equals_the_oracle(operation):
    for case in cases(operation.__name__):
        operation(case)


# The meaning, as a table: before → who boots, after; without and with a factory app.

OUTCOMES = [
    ((None, None), "ota_0", ["1/valid", "blank"], "factory", ["blank", "blank"]),
    (((1, "valid"), None), "ota_0", ["1/valid", "blank"], "ota_0", ["1/valid", "blank"]),
    (((1, "valid"), (2, "new")), "ota_1", ["1/valid", "2/pending"], "ota_1", None),
    (((1, "valid"), (2, "pending")), "ota_0", ["1/valid", "2/aborted"], "ota_0", None),
    (((1, "valid"), (2, "aborted")), "ota_0", ["1/valid", "2/aborted"], "ota_0", None),
    (((1, "valid"), (2, "invalid")), "ota_0", ["1/valid", "2/invalid"], "ota_0", None),
    (((1, "valid"), (2, "valid")), "ota_1", ["1/valid", "2/valid"], "ota_1", None),
    (((1, "new"), None), "ota_0", ["1/pending", "blank"], "ota_0", None),
    (((1, "pending"), None), "ota_0", ["1/aborted", "blank"], "factory", None),
    (((1, "pending"), (2, "pending")), "ota_0", ["1/aborted", "2/aborted"], "factory", None),
    (((1, "aborted"), (2, "aborted")), "ota_0", ["1/aborted", "2/aborted"], "factory", None),
    (((1, "new"), (2, "new")), "ota_1", ["1/new", "2/pending"], "ota_1", None),
    (((1, "valid"), BAD), "ota_0", ["1/valid", "1/valid (bad CRC)"], "ota_0", None),
    ((BAD, None), "ota_0", ["1/valid (bad CRC)", "blank"], "factory", None),
    ((BAD, (2, "aborted")), "ota_0", ["1/valid (bad CRC)", "2/aborted"], "factory", None),
    ((BAD, BAD), "ota_0", ["1/valid (bad CRC)"] * 2, "factory", None),
    (((1, "undefined"), (2, "undefined")), "ota_1", ["1/undefined", "2/undefined"], "ota_1", None),
    (((2, "valid"), (2, "new")), "ota_1", ["2/valid", "2/new"], "ota_1", None),
]


@pytest.mark.parametrize("row", OUTCOMES, ids=lambda row: str(row[0]))
@pytest.mark.parametrize("factory", [False, True])
def test_outcomes(row, factory):
    before, plain, plain_after, with_factory, factory_after = row
    table = layout(2, factory)
    flash = chip(table, sectors(*before), {-1, 0, 1})
    index = bootloader.choose_slot(flash, table, [])
    name = "factory" if index == -1 else f"ota_{index}"
    if factory:
        assert name == with_factory
        assert shown(flash) == (factory_after or plain_after)
    else:
        assert name == plain
        assert shown(flash) == plain_after


def test_blank_otadata_and_only_the_second_image_good():
    table = layout(2)
    flash = chip(table, sectors(None, None), {1})
    assert bootloader.choose_slot(flash, table, []) == 1
    assert shown(flash) == ["2/valid", "blank"]


def test_a_pending_entry_alone_boots_again_and_again():
    table = layout(2)
    flash = chip(table, sectors((1, "pending"), None), {0, 1})
    for _ in range(3):
        assert bootloader.choose_slot(flash, table, []) == 0
        assert shown(flash) == ["1/aborted", "blank"]


def test_a_bad_image_is_on_trial_before_it_is_looked_at():
    table = layout(2)
    flash = chip(table, sectors((1, "valid"), (2, "new")), {0})
    assert bootloader.choose_slot(flash, table, []) == 0
    assert shown(flash) == ["1/valid", "2/pending"]
    # The documented start-up call then marks the broken slot valid.
    assert otadata.mark_valid(flash, table) == 0
    assert shown(flash) == ["1/valid", "2/valid"]


def cuts(operation, before) -> list[tuple[list[str], int]]:
    """Cut before each operation of a rewrite: what otadata says then, and what boots next."""
    found = []
    for number in range(3):
        table = layout(2)
        flash = chip(table, sectors(*before), {0, 1})
        flash.cut = PowerCutPoint(number)
        try:
            operation(flash, table)
        except PowerCut:
            flash.power_on()
        flash.cut = None
        state = shown(flash)
        found.append((state, bootloader.choose_slot(flash, table, [])))
    return found


def update(flash, table):
    otadata.set_boot(flash, table, table.slots[1], lambda _: True)


def start(flash, table):
    bootloader.choose_slot(flash, table, [])


def confirm(flash, table):
    otadata.mark_valid(flash, table)


A, B = 0, 1
CUTS = [
    ("set_boot", update, ((1, "valid"), None), "blank", A, "blank", A, "2/new", B),
    ("trial", start, ((1, "valid"), (2, "new")), "2/new", B, "blank", A, "2/pending", A),
    ("abort", start, ((1, "valid"), (2, "pending")), "2/pending", A, "blank", A, "2/aborted", A),
    ("confirm", confirm, ((1, "valid"), (2, "pending")), "2/pending", A, "blank", A, "2/valid", B),
]


@pytest.mark.parametrize("row", CUTS, ids=lambda row: row[0])
def test_cuts_inside_a_rewrite(row):
    _, operation, before, *expected = row
    wanted = [(["1/valid", expected[i]], expected[i + 1]) for i in (0, 2, 4)]
    assert cuts(operation, before) == wanted


def test_cut_inside_the_first_write():
    table = layout(2)
    for number in range(2):
        flash = chip(table, sectors(None, None), {0, 1})
        flash.cut = PowerCutPoint(number)
        with pytest.raises(PowerCut):
            bootloader.choose_slot(flash, table, [])
        flash.power_on()
        assert shown(flash) == ["blank", "blank"]
        assert bootloader.choose_slot(flash, table, []) == 0
        assert shown(flash) == ["1/valid", "blank"]


def test_cut_inside_the_next_updates_set_boot():
    table = layout(2)
    flash = chip(table, sectors((1, "valid"), (2, "valid")), {0, 1})
    flash.cut = PowerCutPoint(1)
    with pytest.raises(PowerCut):
        otadata.set_boot(flash, table, table.slots[0], lambda _: True)
    flash.power_on()
    assert shown(flash) == ["blank", "2/valid"]
    assert bootloader.choose_slot(flash, table, []) == 1


def test_write_errors_are_logged_and_boot_goes_on():
    table = layout(2)
    flash = chip(table, sectors((1, "valid"), (2, "new")), {0, 1})
    flash.faults.fail_erase = {OTADATA // 0x1000 + 1}
    lines: list[str] = []
    assert bootloader.choose_slot(flash, table, lines) == 1
    assert "otadata not written" in lines[0]
    with pytest.raises(FlashError):
        otadata.mark_valid(flash, table)


# The traps of set_boot, as sequences.


def go(flash, table) -> int | None:
    return bootloader.choose_slot(flash, table, [])


def arm(flash, table, slot) -> None:
    assert otadata.set_boot(flash, table, table.slots[slot], lambda _: True) == 0


def test_a_trial_that_arms_itself_destroys_the_way_back():
    table = layout(2)
    flash = chip(table, sectors((1, "valid"), (2, "new")), {0, 1})
    assert go(flash, table) == 1
    arm(flash, table, 1)
    assert shown(flash) == ["2/new", "2/pending"]
    assert go(flash, table) == 1
    assert shown(flash) == ["2/pending", "2/aborted"]
    assert go(flash, table) == 0
    assert shown(flash) == ["2/aborted", "2/aborted"]
    assert otadata.mark_valid(flash, table) == -1


def test_arming_twice_gives_two_trials_and_no_record():
    table = layout(2)
    flash = chip(table, sectors((1, "valid"), None), {0, 1})
    arm(flash, table, 1)
    arm(flash, table, 1)
    assert shown(flash) == ["2/new", "2/new"]
    boots = [go(flash, table) for _ in range(4)]
    assert boots == [1, 1, 0, 0]
    assert shown(flash) == ["2/aborted", "2/aborted"]


def test_a_trial_that_arms_the_old_slot_puts_it_on_trial():
    table = layout(2)
    flash = chip(table, sectors((1, "valid"), (2, "new")), {0, 1})
    assert go(flash, table) == 1
    arm(flash, table, 0)
    assert shown(flash) == ["3/new", "2/pending"]
    assert go(flash, table) == 0
    assert shown(flash) == ["3/pending", "2/aborted"]
    assert [go(flash, table) for _ in range(2)] == [0, 0]
    assert shown(flash) == ["3/aborted", "2/aborted"]


def rearm(flash: Flash, table: Table) -> None:
    """Count a trial in the label, then turn PENDING into NEW by clearing one bit."""
    entries = otadata.read_entries(flash, OTADATA)
    current = otadata.active_entry(entries)
    entry = entries[current]
    used = sum(byte != 0xFF for byte in entry.label[:3])
    if entry.state != otadata.PENDING or used >= 2:
        return
    flash.program(OTADATA + current * 0x1000 + 4 + used, b"\0")
    flash.program(OTADATA + current * 0x1000 + 24, b"\0\0\0\0")


@pytest.mark.parametrize("new", [0, 1])
def test_three_trials_by_clearing_bits(new):
    table = layout(2)
    old = 1 - new
    start = ((2, "valid"), (3, "new")) if new == 0 else ((1, "valid"), (2, "new"))
    flash = chip(table, sectors(*start), {0, 1})
    booted = []
    for _ in range(5):
        index = go(flash, table)
        booted.append(index)
        if index == new:
            rearm(flash, table)
    assert booted == [new, new, new, old, old]
    assert shown(flash)[0].endswith("/valid")
    assert shown(flash)[1].endswith("/aborted")


@pytest.mark.parametrize("when", ["before", "inside", "after"])
@pytest.mark.parametrize("new", [0, 1])
@pytest.mark.parametrize("number", range(10))
def test_three_trials_survive_a_cut_anywhere(number, new, when):
    """At most three trials, then the old slot from its valid record; never both lost."""
    table = layout(2)
    start = ((2, "valid"), (3, "new")) if new == 0 else ((1, "valid"), (2, "new"))
    for seed in range(8):
        flash = chip(table, sectors(*start), {0, 1})
        flash.cut = PowerCutPoint(number, when, seed)
        trials, last = 0, None
        for _ in range(7):
            flash.power_on()
            try:
                last = go(flash, table)
                if last == new and "valid" not in shown(flash)[1]:
                    trials += 1
                    rearm(flash, table)
            except PowerCut:
                continue
        if when == "inside" and "valid" in shown(flash)[1]:
            continue  # a torn erase may leave any state that has more bits set
        assert trials <= 3
        assert last == 1 - new
        assert shown(flash)[0].endswith("/valid")


# The chip around it.


def whole(slots=("ota_0",)) -> Flash:
    table = Table(
        (
            Partition("nvs", 1, 2, 0x9000, 0x4000),
            Partition("otadata", 1, 0, 0xD000, 0x2000),
            Partition("ota_0", 0, 0x10, 0x10000, 0x10000),
            Partition("ota_1", 0, 0x11, 0x20000, 0x10000),
        )
    )
    flash = Flash.blank(0x40000)
    flash.overwrite(0, synthetic.bootloader_image())
    flash.overwrite(partitions.TABLE_OFFSET, table.to_bin())
    for part in table:
        if part.name in slots:
            flash.overwrite(part.offset, APP)
    return flash


def test_start():
    booted = bootloader.boot_from_flash(whole())
    assert booted.partition.name == "ota_0"
    assert booted.lines == ("otadata 0: 1/valid", "booting ota_0 at 0x10000")


@pytest.mark.parametrize(
    ("offset", "word"), [(0, "bootloader"), (0x8000, "partition table"), (0x10000, "bootable")]
)
def test_what_is_missing_is_named(offset, word):
    flash = whole()
    flash.overwrite(offset, b"\xff" * 0x1000)
    with pytest.raises(NotBootable, match=word):
        bootloader.boot_from_flash(flash)


def test_a_flipped_bit_makes_the_other_slot_boot():
    flash = whole(("ota_0", "ota_1"))
    flash.faults.flips = {0x10100: 4}
    assert bootloader.boot_from_flash(flash).partition.name == "ota_1"


def test_the_test_app_comes_last():
    table = Table((*layout(1), Partition("test", 0, 0x20, 4 * SLOT, SLOT)))
    flash = Flash.blank(8 * SLOT)
    flash.overwrite(4 * SLOT, APP)
    assert bootloader.choose_slot(flash, table, []) == bootloader.TEST_APP
    flash.overwrite(SLOT, APP)
    assert bootloader.choose_slot(flash, table, []) == 0
