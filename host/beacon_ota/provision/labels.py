"""Labels of beacons: the name, the PIN and the proof of possession that are printed on them."""

import csv
import io
import re
import secrets
from dataclasses import dataclass

from beacon_ota.errors import InputError, UsageError
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
        pop: a proof of possession of 128 bits, for a QR code, which saves typing.
    """

    mac: str
    address: str
    name: str
    pin: str
    pop: str

    def as_dict(self) -> dict[str, object]:
        """Return the fields for ``--json`` and CSV files; ``beacon`` is what ``batch`` reads."""
        return {"beacon": self.name, **vars(self)}


def draw_pin() -> str:
    """Return a PIN of eight digits that keeps them in a spreadsheet: the first is not 0."""
    low = 10 ** (DIGITS - 1)
    return str(low + secrets.randbelow(9 * low))


def check_pin(pin: str) -> str:
    """Return a label's PIN (UsageError ``pin``)."""
    if not (len(pin) == DIGITS and pin.isascii() and pin.isdigit()):
        raise UsageError("pin", "not the PIN of a label", expected=f"{DIGITS} digits")
    return pin


def check_name(name: str) -> str:
    """Return a name that a beacon can have on the air (UsageError ``ble_name``)."""
    if not re.fullmatch(r"BLUFI_[0-9A-F]{6}", name):
        raise UsageError(
            "ble_name",
            "not the name of a beacon: it is made from the chip's Bluetooth address",
            found=name[:40],
            expected="BLUFI_ and six hexadecimal digits, as `provision label` prints it",
        )
    return name


def chip_address(name: str, mac: str = "") -> bytes:
    """Return the address of the chip that has a name on the air: six bytes, or the last three.

    Args:
        name: as :func:`check_name` takes it.
        mac: the chip's address, where it is known.

    Raises:
        InputError: ``label_file``: the two are of different chips.
    """
    end = bytes.fromhex(name.rpartition("_")[2])
    end = end[:2] + bytes([end[2] - BLUETOOTH & 255])
    if not mac:
        return end
    found = bytes.fromhex(make_label(mac).mac.replace(":", ""))
    if found[3:] != end:
        raise InputError("label_file", "address and name are of different chips", found=mac)
    return found


def make_label(mac: str, pin: str | None = None) -> Label:
    """Make the label of a chip.

    Args:
        mac: its address, six bytes in hex, with or without colons.
        pin: the PIN; a fresh one when None.

    Raises:
        UsageError: ``mac_address``, ``pin``.
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
        adverts.device_name(bluetooth).decode(),
        draw_pin() if pin is None else check_pin(pin),
        secrets.token_hex(POP_BYTES),
    )


def pick_label(text: str, name: str | None = None) -> Label:
    """Return one label of a CSV as ``provision label`` prints it.

    Args:
        text: the file.
        name: of the beacon; without one there has to be a single row.

    Raises:
        InputError: ``label_file``. UsageError: ``label_choice``, ``pin``, ``ble_name``.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise InputError("label_file", f"the file of labels cannot be read: {error}") from None
    names = [row.get("beacon") or row.get("name") or "" for row in rows]
    if not rows or any(None in row or row.get("pin") is None for row in rows):
        raise InputError(
            "label_file",
            "not a file of labels",
            expected="the columns beacon and pin, as `provision label` prints them",
        )
    chosen = [row for row, one in zip(rows, names, strict=True) if name in (None, one)]
    if len(chosen) != 1:
        raise UsageError(
            "label_choice",
            "which label? --ble-name names one",
            found=name or f"{len(rows)} labels",
            expected=", ".join(names[:8]),
        )
    row = chosen[0]
    found = check_name(row.get("beacon") or row.get("name") or "")
    return Label(
        row.get("mac") or "",
        row.get("address") or "",
        found,
        check_pin(row["pin"].strip()),
        (row.get("pop") or "").strip(),
    )
