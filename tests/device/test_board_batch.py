"""Boards one after the other, with the real esptool: labelled, built, flashed, written down."""

import csv
import json
import threading

import pytest

from beacon_ota.device import board_batch
from beacon_ota.device.board_batch import BoardBatch, new_ports
from beacon_ota.device.board_log import BEGUN, FLASHED, open_log
from beacon_ota.images import boards, flash, synthetic
from beacon_ota.provision import labels, session
from beacon_ota.virtual.flash.nor import Flash
from tests.device.loader import Chip, plugged
from tests.device.test_cli import run  # noqa: F401

DIRTY = b"\x5a" * (4 << 20)
QUIET = {"before": "no-reset", "after": "no-reset", "attempts": 1}


def board(number: int, **kwargs) -> Chip:
    return Chip(Flash(DIRTY), mac=bytes.fromhex("7cdfa10011") + bytes([number]), **kwargs)


@pytest.fixture(scope="module")
def build(release_factory):
    """Make the flash image of a label."""
    release, loader = release_factory(), synthetic.bootloader_image()

    def make(label: labels.Label) -> bytes:
        secret = session.enroll_pin(label.pin, label.name.encode())
        return flash.build_flash(
            boards.load_board("esp32c3"),
            loader,
            release,
            {"pin_w": secret},
            address=labels.chip_address(label.name, label.mac),
        )

    return make


@pytest.fixture
def log(tmp_path):
    with open_log(tmp_path / "labels.csv") as found:
        yield found


def on_chip(chip: Chip):
    stored = flash.parse_flash(chip.flash.read(0, chip.flash.size)).settings
    assert stored is not None
    return stored.get("beacon", "pin_w")


def flash_one(chip: Chip, log, build, **kwargs):
    with plugged(chip):
        return BoardBatch(log, build, "1.0.0", how=QUIET, settle_s=0, **kwargs).flash_board(
            chip.port
        )


def test_a_board_gets_a_label_of_its_own(log, build):
    pins = set()
    for number in (0x20, 0x21):
        chip = board(number)
        done = flash_one(chip, log, build)
        assert done.done and done.row and done.row.result == FLASHED and not done.error
        label = done.row.label
        assert label.mac == chip.mac.hex(":") and log.rows[label.mac] == done.row
        assert on_chip(chip) == session.enroll_pin(label.pin, label.name.encode())
        pins.add(label.pin)
    assert len(pins) == 2


def test_the_label_is_on_the_disk_before_the_board_is_written_to(log, build):
    chip = board(0x22)

    def look(label):
        with log.file.open(newline="") as text:
            [row] = csv.DictReader(text)
        assert (row["pin"], row["result"]) == (label.pin, BEGUN) and chip.flash.ops == 0
        return build(label)

    assert flash_one(chip, log, look).done


def test_a_board_that_fails_keeps_its_label(log, build):
    broken = board(0x23, dies_at=60)
    failed = flash_one(broken, log, build)
    assert failed.error and failed.row and failed.row.result == failed.error.code == "chip_write"
    again = flash_one(board(0x23), log, build)
    assert again.done and again.row and again.row.label == failed.row.label
    assert [row.result for row in log.rows.values()] == [FLASHED]


def test_a_board_that_was_flashed_is_left_alone(log, build):
    first = flash_one(board(0x24), log, build)
    second = board(0x24)
    known = flash_one(second, log, build)
    assert known.known and known.row == first.row and second.flash.ops == 0
    once_more = flash_one(second, log, build, again=True)
    assert once_more.done and once_more.row and first.row
    assert once_more.row.label == first.row.label


def test_a_board_that_says_nothing_has_no_row(log, build):
    result = flash_one(board(0x25, silent=True), log, build)
    assert result.error and result.error.code == "chip_silent"
    assert result.row is None and not log.rows


def test_another_chip_has_no_row(log, build):
    result = flash_one(board(0x26, chip_id=9), log, build)
    assert result.error and result.error.code == "chip_other" and not log.rows


def test_a_port_that_is_not_usable_yet(log, build, monkeypatch):
    """What USB announces is there before it can be opened."""
    chip, link, looks = board(0x27), log.file.with_name("tty"), []

    def wait(seconds: float) -> None:
        if not link.is_symlink():
            looks.append(seconds)
            link.symlink_to(chip.port)

    with plugged(chip):
        monkeypatch.setattr("time.sleep", wait)
        batch = BoardBatch(log, build, "1.0.0", how=QUIET, settle_s=60)
        assert batch.flash_board(str(link)).done and looks == [board_batch.LOOK_S]


def test_a_port_comes_once_for_each_time_it_is_plugged_in():
    states = [{}, {"b": "", "a": "x"}, {"b": "", "a": "x"}, {"a": "x"}, {}, {"a": "y"}]
    seen, turns = [], iter(states)
    now: dict[str, str] = {}

    def there() -> dict[str, str]:
        nonlocal now
        now = next(turns, now)
        return now

    looks = iter(range(12))
    for found in new_ports(there, look_s=0, go_on=lambda: next(looks, None) is not None):
        seen.append(found)
    assert seen == [("a", "x"), ("b", ""), ("a", "y")]


def test_an_image_of_another_label_is_not_written(build):
    image = build(labels.make_label("7c:df:a1:00:11:29"))
    chip = board(0x28)
    with plugged(chip), pytest.raises(board_batch.BeaconOtaError) as caught:
        board_batch.chip.write_image(chip.port, image)
    assert caught.value.code == "chip_label" and caught.value.found == "7c:df:a1:00:11:28"
    assert chip.flash.ops == 0


def test_the_command(run, tmp_path, release_factory):  # noqa: F811
    """Two boards are there, one of them dead; two more are plugged in; then once more for it."""
    (tmp_path / "r.bin").write_bytes(release_factory())
    file, ports = tmp_path / "labels.csv", tmp_path / "ports"
    ports.mkdir()
    args = ("--release", tmp_path / "r.bin", "--synthetic", "--port", ports / "*")
    how = ("--before", "no-reset", "--after", "no-reset", "--attempts", 1, "--site", "hq")
    first, dead, third = board(0x30), board(0x31, dies_at=60), board(0x32)
    with plugged(first), plugged(dead), plugged(third):
        for name, chip in (("a", first), ("b", dead), ("c", third)):
            (ports / name).symlink_to(chip.port)
        code, out, err = run("flash-batch", file, *args, *how, "--count", 2, "--json")
        assert code == 1, err
        told = {row["mac"]: row["result"] for row in json.loads(out)}
        assert told == {
            first.mac.hex(":"): FLASHED,
            dead.mac.hex(":"): "chip_write",
            third.mac.hex(":"): FLASHED,
        }
    pins = {row["mac"]: row["pin"] for row in json.loads(out)}
    assert on_chip(first) and on_chip(third) and on_chip(first) != on_chip(third)
    alive, ops = board(0x31), first.flash.ops
    with plugged(first), plugged(alive):
        for name, chip in (("a", first), ("b", alive)):
            (ports / name).unlink()
            (ports / name).symlink_to(chip.port)
        (ports / "c").unlink()
        code, out, err = run("flash-batch", file, *args, *how, "--count", 1)
    assert code == 0, err
    assert "was flashed before" in out and first.flash.ops == ops
    assert f"PIN {pins[alive.mac.hex(':')]}" in out and "1 flashed, 0 failed" in out
    assert on_chip(alive)


def test_the_command_refuses_by_name(run, tmp_path, release_factory):  # noqa: F811
    (tmp_path / "r.bin").write_bytes(release_factory())
    args = ("flash-batch", tmp_path / "l.csv", "--release", tmp_path / "r.bin", "--synthetic")
    for one in (("--pin", "12345678"), ("--beacon-id", "b1"), ("--ibeacon", "x")):
        code, _, err = run(*args, *one)
        assert code == 2 and "options" in err
    code, _, err = run(*args, "--utc-off", "9999")
    assert code == 2 and "setting_value" in err
    with open_log(tmp_path / "l.csv"):
        code, _, err = run(*args)
        assert code == 2 and "labels_in_use" in err


def test_it_ends_when_it_is_told_to(run, tmp_path, release_factory, monkeypatch):  # noqa: F811
    (tmp_path / "r.bin").write_bytes(release_factory())
    looked = threading.Event()

    def interrupt(_patterns):
        if looked.is_set():
            raise KeyboardInterrupt
        looked.set()
        return {}

    monkeypatch.setattr(board_batch, "find_ports", interrupt)
    args = ("flash-batch", tmp_path / "l.csv", "--release", tmp_path / "r.bin", "--synthetic")
    code, out, _ = run(*args)
    assert code == 0 and "0 flashed, 0 failed" in out
