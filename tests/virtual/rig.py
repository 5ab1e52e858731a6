"""Flash images with a few Python files, and beacons that run them."""

from collections.abc import Mapping
from contextlib import contextmanager
from functools import cache

from littlefs import LittleFS

from beacon_ota.images import nvs, partitions, synthetic
from beacon_ota.images.partitions import Table
from beacon_ota.paths import data_path
from beacon_ota.virtual.beacon import VirtualBeacon
from beacon_ota.virtual.flash.nor import Flash

SIZE = 0x400000
WAIT = 60  # seconds: generous, for machines that do other things as well


@cache
def table(name: str = "partitions.csv") -> Table:
    """The default partition table, or another CSV's."""
    return partitions.parse_csv(data_path(name).read_text(), SIZE)


@cache
def app(seed: str = "") -> bytes:
    """A small app image; another seed makes another."""
    return synthetic.app_image(seed=seed)


def littlefs(files: Mapping[str, str | bytes], size: int) -> bytes:
    """A LittleFS of ``size`` bytes that holds the files."""
    fs = LittleFS(block_size=4096, block_count=size // 4096, disk_version=0x00020000)
    for name, content in files.items():
        if "/" in name:
            fs.makedirs(name.rpartition("/")[0], exist_ok=True)
        with fs.open(name, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
    return bytes(fs.context.buffer)


def image(
    files: Mapping[str, str | bytes] | None = None,
    settings: Mapping[str, int | bytes] | None = None,
    *,
    both: bool = False,
    layout: Table | None = None,
) -> bytes:
    """A 4 MB flash image.

    Args:
        files: what lies in the vfs; None leaves it blank.
        settings: NVS, namespace ``beacon``.
        both: put an app into the second slot as well.
        layout: another partition table.
    """
    rows = layout or table()
    flash = bytearray(b"\xff" * SIZE)

    def put(offset: int, content: bytes) -> None:
        flash[offset : offset + len(content)] = content

    put(0, synthetic.bootloader_image())
    put(partitions.TABLE_OFFSET, rows.to_bin())
    for number, slot in enumerate(rows.slots[: 2 if both else 1]):
        put(slot.offset, app(str(number) if number else ""))
    if settings is not None:
        assert rows.nvs is not None
        put(rows.nvs.offset, nvs.generate_partition({"beacon": settings}, rows.nvs.size))
    vfs = rows.find_name("vfs")
    if files is not None and vfs is not None:
        put(vfs.offset, littlefs(files, vfs.size))
    return bytes(flash)


@contextmanager
def running(main: str, boot: str | None = None, *, flash: Flash | None = None, **options):
    """Power a beacon on whose vfs holds ``main`` (and ``boot``) as main.py (boot.py).

    Args:
        flash: start from this instead.
        options: of :func:`image` (``settings``, ``both``) and of the beacon.
    """
    chosen = {key: options.pop(key) for key in ("settings", "both", "layout") if key in options}
    files = {"main.py": main} if boot is None else {"boot.py": boot, "main.py": main}
    chip = flash or Flash(image(files, **chosen))
    with VirtualBeacon(chip, **options) as beacon:
        beacon.power_on()
        yield beacon
    if flash is None:
        chip.close()


def finish(beacon: VirtualBeacon, timeout: float = WAIT) -> str:
    """Wait until main.py is through, and return what it printed."""
    beacon.wait_for(lambda: beacon.phase == "repl", timeout, "the end of main.py")
    return beacon.console


def printed(main: str, **options) -> list[str]:
    """Run ``main`` to its end and return its lines."""
    with running(main, **options) as beacon:
        return finish(beacon).splitlines()
