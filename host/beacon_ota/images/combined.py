"""Take bootloader and core out of a combined image, such as MicroPython's official download.

Bootloader at 0x0, partition table at 0x8000, the app where the table says.
"""

from dataclasses import dataclass

from beacon_ota.images import Buffer, esp, partitions
from beacon_ota.images.esp import AppImage, Bootloader
from beacon_ota.images.partitions import TABLE_OFFSET, Table


@dataclass(frozen=True)
class Core:
    """An interpreter: the app image's bytes, and the bootloader that came with it, if any.

    ``data`` ends with the image: nothing follows the appended SHA-256.
    """

    data: bytes
    image: AppImage
    bootloader: bytes | None = None
    bootloader_image: Bootloader | None = None
    table: Table | None = None


def is_combined(data: Buffer) -> bool:
    """Tell a combined image from an app image, cheaply."""
    return partitions.is_table(data, TABLE_OFFSET) and esp.is_flash_image(data)


def split_image(data: Buffer) -> Core:
    """Take a combined image apart.

    The app is the factory one, or the first OTA slot on a table without factory.

    Raises:
        PartitionError: there is no valid table at 0x8000.
        ImageError: bootloader or app is damaged, or the table has no app.
    """
    table = partitions.parse_bin(data, offset=TABLE_OFFSET)
    loader = esp.parse_bootloader(data, 0, TABLE_OFFSET)
    slot = table.factory or next(iter(table.slots), None)
    if slot is None:
        raise esp.ImageError("image_magic", "the partition table of this image has no app")
    image = esp.parse_app_image(data, slot.offset, slot.size)
    return Core(
        data=bytes(data[slot.offset : slot.offset + image.length]),
        image=image,
        bootloader=bytes(data[: loader.length]),
        bootloader_image=loader,
        table=table,
    )


def parse_core(data: Buffer) -> Core:
    """Read a core from an app image or a combined image.

    Bytes behind an app image are dropped: a release gives its core.

    Raises:
        PartitionError, ImageError: as :func:`split_image` and
            :func:`beacon_ota.images.esp.parse_app_image`.
    """
    if is_combined(data):
        return split_image(data)
    image = esp.parse_app_image(data)
    return Core(data=bytes(data[: image.length]), image=image)
