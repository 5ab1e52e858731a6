"""NOR rules, faults, power cuts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beacon_ota.errors import InputError
from beacon_ota.virtual.flash.nor import (
    Flash,
    FlashError,
    FlashOperation,
    PowerCut,
    PowerCutPoint,
    Timing,
)

SECTOR = 0x1000


@given(st.binary(min_size=1, max_size=64), st.binary(min_size=1, max_size=64), st.integers(0, 40))
def test_program_only_clears_bits(first, second, offset):
    flash = Flash.blank(SECTOR)
    flash.program(offset, first)
    flash.program(offset, second)
    padded = [data.ljust(64, b"\xff") for data in (first, second)]
    assert flash.read(offset, 64) == bytes(a & b for a, b in zip(*padded, strict=True))


def test_erase_sets_whole_sectors():
    flash = Flash(bytes(4 * SECTOR))
    flash.erase(SECTOR, 2 * SECTOR)
    assert flash.snapshot() == bytes(SECTOR) + b"\xff" * 2 * SECTOR + bytes(SECTOR)
    assert flash.ops == 2
    assert flash.wear == {1: 1, 2: 1}
    with pytest.raises(ValueError):
        flash.erase(1, SECTOR)


@pytest.mark.parametrize("size", [0, 1, SECTOR + 1])
def test_size(size):
    with pytest.raises(InputError) as caught:
        Flash(bytes(size))
    assert caught.value.code == "flash_size"


@pytest.mark.parametrize(("offset", "length"), [(-1, 4), (SECTOR, 1), (SECTOR - 3, 4)])
def test_outside(offset, length):
    flash = Flash.blank(SECTOR)
    with pytest.raises(ValueError):
        flash.read(offset, length)
    with pytest.raises(ValueError):
        flash.program(offset, bytes(length))


def test_journal_counts_operations():
    flash = Flash.blank(2 * SECTOR, record=True)
    flash.erase(0, 2 * SECTOR)
    flash.program(16, b"abc")
    flash.program(16, b"")
    assert flash.journal == [
        FlashOperation(0, "erase", 0, SECTOR),
        FlashOperation(1, "erase", SECTOR, SECTOR),
        FlashOperation(2, "program", 16, 3, b"abc"),
    ]


def test_timing():
    flash = Flash.blank(2 * SECTOR)
    flash.timing = Timing(erase=0.05, program=0.001)
    flash.erase(0)
    flash.program(0, bytes(SECTOR))
    flash.program(SECTOR + 250, bytes(10))
    assert flash.busy == pytest.approx(0.05 + 16 * 0.001 + 2 * 0.001)


@pytest.mark.parametrize("when", ["before", "after"])
def test_cut_around_an_operation(when):
    flash = Flash.blank(SECTOR)
    flash.cut = PowerCutPoint(1, when)
    flash.program(0, b"\x00")
    with pytest.raises(PowerCut):
        flash.program(1, b"\x00")
    assert flash.read(0, 3) == (b"\x00\xff\xff" if when == "before" else b"\x00\x00\xff")
    with pytest.raises(PowerCut):  # there is no power any more
        flash.program(2, b"\x00")
    flash.power_on()
    flash.program(2, b"\x00")
    assert flash.read(2, 1) == b"\x00"


@given(st.integers(0, 1000))
def test_torn_program_is_a_prefix(seed):
    flash = Flash.blank(SECTOR)
    flash.cut = PowerCutPoint(0, "inside", seed)
    with pytest.raises(PowerCut):
        flash.program(10, bytes(range(32)))
    data = flash.read(10, 32)
    length = next((n for n in range(33) if data[n:] == b"\xff" * (32 - n)), 0)
    assert data[:length] == bytes(range(length))


@given(st.integers(0, 1000))
def test_torn_erase_only_sets_bits(seed):
    before = bytes(range(256)) * 16
    flash = Flash(before)
    flash.cut = PowerCutPoint(0, "inside", seed)
    with pytest.raises(PowerCut):
        flash.erase(0)
    after = flash.snapshot()
    assert all(a & b == b for a, b in zip(after, before, strict=True))
    assert before != after != b"\xff" * SECTOR


def test_failing_sectors_report_and_keep_their_content():
    flash = Flash(bytes(2 * SECTOR))
    flash.faults.fail_erase = {0}
    with pytest.raises(FlashError) as caught:
        flash.erase(0)
    assert caught.value.code == 0x6001
    assert flash.read(0, 4) == bytes(4)
    flash.erase(SECTOR)
    flash.faults.fail_program = {1}
    with pytest.raises(FlashError):
        flash.program(SECTOR - 1, b"ab")
    assert flash.read(SECTOR, 1) == b"\xff"


def test_stuck_bits_are_silent():
    flash = Flash.blank(SECTOR)
    flash.faults.stuck = {5: 0x81}
    flash.erase(0)
    assert flash.read(4, 3) == b"\xff\x7e\xff"


def test_flips_are_only_read():
    flash = Flash.blank(SECTOR)
    flash.faults.flips = {7: 0x10}
    assert flash.read(6, 3) == b"\xff\xef\xff"
    assert flash.content[7] == 0xEF
    flash.faults.flips = {}
    assert flash.read(6, 3) == b"\xff\xff\xff"


def test_a_file_holds_what_was_written(tmp_path):
    path = tmp_path / "flash.bin"
    path.write_bytes(b"\xff" * 2 * SECTOR)
    flash = Flash.open(path)
    flash.program(SECTOR, b"here")
    flash.close()
    assert path.read_bytes()[SECTOR : SECTOR + 4] == b"here"
    path.write_bytes(b"short")
    with pytest.raises(InputError):
        Flash.open(path)


def test_snapshots():
    flash = Flash.blank(SECTOR)
    start = flash.snapshot()
    flash.fileno()  # from here on the content is shared memory
    flash.program(0, b"x")
    flash.cut = PowerCutPoint(flash.ops)
    flash.restore(start)
    assert flash.snapshot() == start
    flash.program(0, b"y")
    assert flash.read(0, 1) == b"y"
