"""Whole flash images: every byte in its place, and back again."""

import pytest

from beacon_ota.errors import BeaconOtaError
from beacon_ota.images import boards, esp, flash, littlefs, nvs, otadata, release, synthetic
from beacon_ota.images.partitions import PartitionError
from beacon_ota.virtual.flash import bootloader
from beacon_ota.virtual.flash.nor import Flash

BOARDS = ["esp32c3", "esp32c3-8mb", "esp32c3-1m"]


@pytest.mark.parametrize("name", BOARDS)
def test_a_flash_image_goes_together_and_comes_apart(name, release_factory, flash_factory):
    board = boards.load_board(name)
    built = release_factory("1.2.3", device_type=name)
    image = flash_factory(built, {"wifi_ssid": b"hall", "utc_off": 60}, board=name)
    assert len(image) == board.flash_size
    found = flash.parse_flash(image)
    assert found.board == board and found.errors == {}
    assert found.table == board.table
    assert found.bootloader and found.bootloader.flash_size == board.flash_size
    assert found.settings
    assert found.settings.namespace("beacon") == {"wifi_ssid": b"hall", "utc_off": 60}
    assert found.vfs and found.vfs.files == flash.stage0_files()
    assert found.vfs.size == board.vfs.size
    first, *others = found.apps
    assert first.partition == board.initial_app
    assert first.release == release.parse_release(built)
    assert all(app.blank and app.release is None for app in others)


@pytest.mark.parametrize("name", BOARDS)
def test_it_boots_and_the_first_boot_writes_nothing(name, flash_factory):
    chip = Flash(flash_factory(board=name))
    booted = bootloader.boot_from_flash(chip)
    assert booted.partition == boards.load_board(name).initial_app
    assert chip.ops == 0


def test_the_parts_lie_where_the_board_says(release_factory, flash_factory):
    built = release_factory()
    image = flash_factory(built)
    loader = synthetic.bootloader_image()
    assert image[: len(loader)] == loader
    assert image[0x8000:0x8C00] == boards.load_board("esp32c3").table.to_bin()
    assert nvs.read_partition(image[0x9000:0xD000]).entries == ()
    assert image[0xD000:0xF000] == otadata.build_partition(otadata.make_entry(1, otadata.VALID))
    assert image[0x10000 : 0x10000 + len(built)] == built
    assert set(image[0x1D0000:0x390000]) == {0xFF}
    assert littlefs.read_filesystem(image, 0x390000).block_size == 4096


def test_a_layout_with_factory_boots_it_from_blank_otadata(flash_factory):
    image = flash_factory(board="esp32c3-8mb")
    place = boards.load_board("esp32c3-8mb").otadata
    assert set(image[place.offset : place.end]) == {0xFF}
    assert esp.parse_bootloader(image, 0, 0x8000).flash_size == 8 << 20


def test_the_same_parts_give_the_same_bytes(flash_factory):
    values = {"site": b"hq", "utc_off": -60}
    assert flash_factory(None, values) == flash_factory(None, values)


def test_only_what_is_used_has_to_be_written(flash_factory):
    image = flash_factory()
    stretches = flash.used_regions(image)
    assert stretches[0] == (0, 4096)
    copy = bytearray(b"\xff" * len(image))
    for offset, length in stretches:
        copy[offset : offset + length] = image[offset : offset + length]
    assert copy == image
    assert sum(length for _, length in stretches) < 200_000
    assert flash.used_regions(b"") == []
    assert flash.used_regions(b"\xff" * 5000 + b"\0") == [(4096, 4096)]


@pytest.mark.parametrize(
    "make, code",
    [
        (lambda new: {"built": new(device_type="esp32c3-8mb")}, "device_type"),
        (lambda new: {"built": new() + b"\xff"}, "app_trailing"),
        (lambda new: {"built": new(core=synthetic.app_image(0x1C0000 - 4000))}, "slot_too_small"),
        (lambda new: {"bootloader": synthetic.app_image()}, "image_segment"),
        (lambda new: {"bootloader": b"\xff" * 100}, "image_magic"),
        (lambda new: {"settings": {"x" * 16: 1}}, "nvs_key"),
        (lambda new: {"settings": {f"k{i}": bytes(4000) for i in range(4)}}, "nvs_full"),
        (lambda new: {"files": {"big": bytes(0x70000)}}, "fs_full"),
        (lambda new: {"files": {"..": b""}}, "fs_name"),
    ],
)
def test_what_does_not_go_together(make, code, release_factory, flash_factory):
    with pytest.raises(BeaconOtaError) as caught:
        flash_factory(**make(release_factory))
    assert caught.value.code == code


def test_a_stock_core_on_small_slots_is_refused_with_the_numbers(real_core, release_factory):
    built = release_factory(core=real_core.data, device_type="esp32c3-1m")
    with pytest.raises(boards.BoardError) as caught:
        flash.build_flash(boards.load_board("esp32c3-1m"), real_core.bootloader, built)
    assert caught.value.expected == 1 << 20 and "esp32c3-1m" in caught.value.message


@pytest.mark.parametrize("name", ["esp32c3", "esp32c3-8mb"])
def test_with_the_real_core(name, real_core, release_factory, flash_factory):
    built = release_factory(core=real_core.data, device_type=name)
    image = flash_factory(built, board=name, bootloader=real_core.bootloader)
    found = flash.parse_flash(image)
    assert found.errors == {} and found.board and found.board.name == name
    assert bootloader.boot_from_flash(Flash(image)).partition == boards.load_board(name).initial_app


def test_damage_is_reported_by_part(flash_factory):
    image = bytearray(flash_factory())
    image[100] ^= 1  # bootloader
    image[0x10000 + 200] ^= 1  # core
    image[0x1D0000] = 0  # the other slot
    image[0x390000 + 8 : 0x390000 + 16] = b"nothing!"
    image[0x391008:0x391010] = b"nothing!"
    found = flash.parse_flash(image)
    codes = {part: error.code for part, error in found.errors.items()}
    assert codes == {
        "bootloader": "image_checksum",
        "ota_0": "image_checksum",
        "ota_1": "image_magic",
        "vfs": "fs_magic",
    }
    assert found.bootloader is None and found.vfs is None


def test_a_file_that_ends_early_is_said_so(flash_factory):
    found = flash.parse_flash(flash_factory()[:0x180000])
    assert found.errors["size"].code == "flash_truncated"
    assert found.board is None


def test_without_a_table_it_is_no_flash_image():
    with pytest.raises(PartitionError):
        flash.parse_flash(bytes(0x10000))
