"""Carries HCI packets between ``/dev/vhci`` and the radio outside: one adapter of the kernel."""

import os
import threading

VENDOR, COMMAND, ACL, EVENT = 0xFF, 1, 2, 4
_HEADERS = {ACL: (5, 3, 2), EVENT: (3, 2, 1)}  # length, place and size of the length field


def run_bridge(port: int) -> None:
    """Make an adapter, and carry its packets to a port and back, in two threads.

    Args:
        port: file descriptor of the port to the radio, which speaks H4.
    """
    vhci = os.open("/dev/vhci", os.O_RDWR)
    os.write(vhci, bytes((VENDOR, 0)))
    threading.Thread(target=_carry_out, args=(vhci, port), daemon=True).start()
    threading.Thread(target=_carry_in, args=(port, vhci), daemon=True).start()


def _carry_out(vhci: int, port: int) -> None:
    while True:
        packet = os.read(vhci, 4096)
        if packet[0] != VENDOR:
            while packet:
                packet = packet[os.write(port, packet) :]


def _carry_in(port: int, vhci: int) -> None:
    buffer = b""
    while True:
        buffer += os.read(port, 4096)
        while buffer:
            head, place, size = _HEADERS[buffer[0]]
            if len(buffer) < head:
                break
            end = head + int.from_bytes(buffer[place : place + size], "little")
            if len(buffer) < end:
                break
            os.write(vhci, buffer[:end])
            buffer = buffer[end:]
