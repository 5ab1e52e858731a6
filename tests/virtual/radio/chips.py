"""Virtual beacons that run a given `main.py`, in a room."""

from collections.abc import Iterator
from contextlib import contextmanager

from beacon_ota.images import boards, littlefs, otadata, synthetic
from beacon_ota.virtual.beacon import VirtualBeacon
from beacon_ota.virtual.flash.nor import Flash
from beacon_ota.virtual.radio.space import RadioSpace, RemoteSpace

TABLE = 0x8000
SECTOR = 4096

# Begins every program: a BluFi-like service, and the handler's events as lines on the console.
PRELUDE = """
import asyncio, errno, time
import bluetooth, machine
from bluetooth import UUID
from micropython import const
ble = bluetooth.BLE()
ble.active(True)
ADV = b"\\x02\\x01\\x06\\x03\\x03\\xff\\xff"
NAME = b"\\x04\\x09BAB"
def serve(irq, buffer=512):
    global rx, tx
    ((rx, tx),) = ble.gatts_register_services(
        [(UUID(0xFFFF), ((UUID(0xFF01), 0x0C), (UUID(0xFF02), 0x12)))]
    )
    if buffer:
        ble.gatts_set_buffer(rx, buffer)
    ble.irq(irq)
    ble.gap_advertise(20_000, ADV, resp_data=NAME)
async def forever():
    while True:
        await asyncio.sleep(60)
"""


def flash(program: str) -> Flash:
    """A flash that boots and runs ``program`` as main.py."""
    board = boards.load_board("esp32c3")
    files = {"boot.py": b"", "main.py": (PRELUDE + program).encode()}
    image = bytearray(b"\xff") * board.flash_size
    for offset, data in {
        0: synthetic.bootloader_image(),
        TABLE: board.table.to_bin(),
        board.otadata.offset: otadata.build_partition(otadata.make_entry(1, otadata.VALID)),
        board.initial_app.offset: synthetic.app_image(16 * 1024),
        board.vfs.offset: littlefs.build_filesystem(files, SECTOR, board.vfs.size // SECTOR),
    }.items():
        image[offset : offset + len(data)] = data
    return Flash(image)


def address(number: int) -> str:
    """Bluetooth address of the beacon that :func:`running` gives this number."""
    return f"D4:F9:8D:00:00:{number + 2:02X}"


@contextmanager
def running(
    room: RadioSpace | RemoteSpace, program: str, number: int = 0, ready: str = ""
) -> Iterator[VirtualBeacon]:
    """A beacon that has power and runs ``program``; waits for a line it prints, if given."""
    mac = bytes.fromhex("d4f98d0000") + bytes([number])
    content = flash(program)
    try:
        with VirtualBeacon(content, mac=mac, bluetooth=room.make_backend()) as beacon:
            beacon.power_on()
            if ready:
                beacon.wait_for(lambda: ready in beacon.console, 10, ready)
            yield beacon
    finally:
        content.close()
