"""Cores taken out of combined images."""

import pytest

from beacon_ota.images import combined, partitions, synthetic
from beacon_ota.images.esp import ImageError

LAYOUTS = {
    "factory": "nvs,data,nvs,0x9000,0x6000\nfactory,app,factory,0x10000,0x1F0000\n",
    "slots": "nvs,data,nvs,0x9000,0x4000\notadata,data,ota,,0x2000\n"
    "ota_0,app,ota_0,0x10000,1M\nota_1,app,ota_1,,1M\n",
    "late": "nvs,data,nvs,0x9000,0x4000\nfactory,app,factory,0x20000,0x1F0000\n",
}


def build(layout, app=b"", loader=b""):
    table = partitions.parse_csv(LAYOUTS[layout])
    slot = table.factory or table.slots[0]
    image = (loader or synthetic.bootloader_image()).ljust(0x8000, b"\xff")
    image = (image + table.to_bin()).ljust(slot.offset, b"\xff")
    return image + (app or synthetic.app_image())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_core_and_bootloader_come_out_as_they_went_in(layout):
    data = build(layout)
    assert combined.is_combined(data)
    core = combined.parse_core(data)
    assert core.data == synthetic.app_image()
    assert core.bootloader == synthetic.bootloader_image()
    assert core.table and core.table.find_name("nvs")


def test_an_app_image_is_a_core_without_bootloader():
    core = combined.parse_core(synthetic.app_image() + b"trailing")
    assert core.data == synthetic.app_image()
    assert core.bootloader is None


@pytest.mark.parametrize(
    "data, code",
    [
        (lambda: build("factory", app=b"\xff" * 100), "image_magic"),
        (lambda: build("factory", app=synthetic.app_image()[:-1]), "image_truncated"),
        (lambda: build("factory", loader=b"\xff"), "image_magic"),
        (lambda: build("factory", loader=synthetic.app_image()), "image_segment"),
    ],
)
def test_damaged_parts_are_refused(data, code):
    with pytest.raises(ImageError) as caught:
        combined.parse_core(data())
    assert caught.value.code == code


def test_a_table_without_apps_is_refused():
    table = partitions.parse_csv("nvs,data,nvs,0x9000,0x6000\n")
    with pytest.raises(ImageError):
        combined.split_image(synthetic.bootloader_image().ljust(0x8000, b"\xff") + table.to_bin())


def test_the_official_download(real_core):
    assert real_core.table and real_core.table.factory
    assert real_core.image.descriptor.idf.startswith("v5.")
