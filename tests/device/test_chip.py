"""Flash images onto a chip, with the real esptool."""

import fcntl
import os
import pty
import tty

import pytest

from beacon_ota.device import chip
from beacon_ota.errors import BeaconOtaError
from beacon_ota.images import flash
from beacon_ota.virtual.flash.nor import Flash, FlashFaults
from tests.device.loader import Chip, plugged

DIRTY = b"\x5a" * (4 << 20)  # what was in the flash before


@pytest.fixture(scope="module")
def image(flash_factory):
    return flash_factory(None, {"wifi_ssid": b"hall"})


def refuse(function, code):
    with pytest.raises(BeaconOtaError) as caught:
        function()
    assert caught.value.code == code, caught.value
    return caught.value


@pytest.mark.parametrize("stub", [True, False])
def test_an_image_is_written_and_verified(image, stub):
    seen = []
    with plugged(Chip(Flash(DIRTY))) as found:
        written = chip.write_image(found.port, image, stub=stub, progress=seen.append)
        content = found.flash.read(0, found.flash.size)
    assert found.stub == stub
    assert written.mac == "60:55:8f:01:02:03" and written.chip == "ESP32-C3"
    assert written.flash_size == 4 << 20
    for offset, length in written.regions:
        assert content[offset : offset + length] == image[offset : offset + length]
    parsed = flash.parse_flash(content)
    assert {"ota_1"} == set(parsed.errors)  # what was there before, and nobody looks at
    assert parsed.settings and parsed.settings.get("beacon", "wifi_ssid") == b"hall"
    assert content[0x1D0000:0x1D4000] == DIRTY[:0x4000]
    assert seen == sorted(seen) and seen[-1] == written.size < 300_000


def test_settings_and_otadata_are_written_whole(image):
    regions = chip.flash_regions(image)
    covered = {at for offset, length in regions for at in range(offset, offset + length, 4096)}
    assert set(range(0x9000, 0xF000, 4096)) <= covered
    assert 0x1D0000 not in covered
    assert chip.flash_regions(image, whole=True) == [(0, len(image))]
    assert all(a + b < c for (a, b), (c, _) in zip(regions, regions[1:], strict=False))


def test_the_whole_flash_can_be_erased_first(image):
    with plugged(Chip(Flash(DIRTY))) as found:
        chip.write_image(found.port, image, erase_all=True)
        assert found.flash.read(0, len(image)) == image


def test_what_is_no_flash_image_is_not_written(release_factory):
    with plugged(Chip(Flash(DIRTY))) as found:
        refuse(lambda: chip.write_image(found.port, release_factory()), "flash_expected")
        assert found.commands == []


def test_another_chip_is_left_alone(image):
    with plugged(Chip(Flash(DIRTY), chip_id=9)) as found:
        error = refuse(lambda: chip.write_image(found.port, image), "chip_other")
        assert error.found == "ESP32-S3"
        assert found.flash.ops == 0


def test_too_little_flash(image):
    with plugged(Chip(Flash(DIRTY[: 2 << 20]))) as found:
        error = refuse(lambda: chip.write_image(found.port, image), "chip_flash_small")
        assert (error.found, error.expected) == (2 << 20, 4 << 20)
        assert found.flash.ops == 0


@pytest.mark.parametrize("stub", [True, False])
def test_a_chip_that_was_not_written_to_runs_on(image, stub):
    with plugged(Chip(Flash(DIRTY[: 2 << 20]))) as found:
        refuse(
            lambda: chip.write_image(found.port, image, stub=stub, after="watchdog-reset"),
            "chip_flash_small",
        )
        assert found.watchdog_started()


def test_an_interruption_before_anything_is_written(image, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("esptool.cmds.attach_flash", interrupt)
    with plugged(Chip(Flash(DIRTY))) as found:
        with pytest.raises(KeyboardInterrupt):
            chip.write_image(found.port, image, after="watchdog-reset")
        assert found.watchdog_started() and found.flash.ops == 0


def test_half_a_life_is_not_started(image):
    """What was written in part stays in the loader, to be written again."""

    def interrupt(done):
        raise KeyboardInterrupt

    with plugged(Chip(Flash(DIRTY))) as found:
        with pytest.raises(KeyboardInterrupt):
            chip.write_image(found.port, image, after="watchdog-reset", progress=interrupt)
        assert found.flash.ops > 0 and not found.watchdog_started()
        chip.write_image(found.port, image, before="no-reset", after="watchdog-reset")
        assert found.watchdog_started()


@pytest.mark.parametrize(("after", "reset"), [("hard-reset", True), ("no-reset", False)])
def test_a_chip_that_is_not_heard_is_reset_by_its_lines(image, monkeypatch, after, reset):
    ports_reset = []
    monkeypatch.setattr("beacon_ota.device.ports.reset_chip", ports_reset.append)
    with plugged(Chip(Flash(DIRTY), silent=True)) as found:
        refuse(lambda: chip.write_image(found.port, image, after=after, attempts=1), "chip_silent")
        assert ports_reset == [found.port] * reset


def test_nobody_answers(image):
    with plugged(Chip(Flash(DIRTY), silent=True)) as found:
        error = refuse(
            lambda: chip.write_image(found.port, image, before="no-reset", attempts=1),
            "chip_silent",
        )
        assert "BOOT" in error.message


def test_the_chip_dies_in_between(image):
    with plugged(Chip(Flash(DIRTY), dies_at=60)) as found:
        refuse(lambda: chip.write_image(found.port, image), "chip_write")


def test_a_worn_sector_is_found(image):
    at = next(at for at in range(0x10100, 0x11000) if image[at] & 1)
    with plugged(Chip(Flash(DIRTY))) as found:
        found.flash.faults = FlashFaults(stuck={at: 1})
        refuse(lambda: chip.write_image(found.port, image), "chip_verify")


def test_a_port_that_is_not_there(image, tmp_path):
    error = refuse(lambda: chip.write_image(str(tmp_path / "ttyUSB7"), image), "port_missing")
    assert "ttyUSB7" in error.message
    refuse(lambda: chip.write_image("socket://127.0.0.1:1", image), "port_lost")


def test_a_port_that_another_program_uses(image):
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    try:
        fcntl.flock(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)
        refuse(lambda: chip.write_image(os.ttyname(theirs), image), "port_busy")
    finally:
        os.close(ours)
        os.close(theirs)
