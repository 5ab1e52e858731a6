"""What is printed on beacons' labels, and put into their flash images: names and PINs."""

import re
import secrets
from dataclasses import dataclass

from beacon_ota.errors import UsageError
from beacon_ota.wire import adverts

DIGITS = 8
POP_BYTES = 16
BLUETOOTH = 2  # what the C3's Bluetooth address is above the chip's own


@dataclass(frozen=True)
class Label:
    """One beacon's label.

    Attributes:
        mac: the chip's address, as esptool prints it.
        address: its Bluetooth address.
        name: under which it can be provisioned.
        pin: eight digits.
        pop: a proof of possession of 128 bits, for a QR code: whoever reads that need not type.
    """

    mac: str
    address: str
    name: str
    pin: str
    pop: str

    def as_dict(self) -> dict[str, object]:
        """Return the fields for ``--json`` and CSV files; ``beacon`` is what ``batch`` reads."""
        return {"beacon": self.name, **vars(self)}


def label(mac: str, pin: str | None = None) -> Label:
    """Make the label of a chip.

    Args:
        mac: its address, six bytes in hex, with or without colons.
        pin: the PIN; a fresh one when None.

    Raises:
        UsageError: ``mac_address``.
    """
    digits = re.sub(r"[:-]", "", mac)
    if not re.fullmatch(r"[0-9A-Fa-f]{12}", digits):
        raise UsageError(
            "mac_address", "not the address of a chip", found=mac[:40], expected="7c:df:a1:00:11:22"
        )
    raw = bytes.fromhex(digits)
    bluetooth = raw[:5] + bytes([raw[5] + BLUETOOTH & 255])
    return Label(
        raw.hex(":"),
        bluetooth.hex(":").upper(),
        adverts.name(bluetooth).decode(),
        f"{secrets.randbelow(10**DIGITS):0{DIGITS}}" if pin is None else pin,
        secrets.token_hex(POP_BYTES),
    )
