"""Checks the settings of a beacon and converts them to NVS values (contracts.md, section 7)."""

import json
import os
from collections.abc import Callable, Mapping

from beacon_ota.errors import UsageError
from beacon_ota.images import nvs_format
from beacon_ota.images.appfs import AppError, check_version
from beacon_ota.wire import auth, url
from beacon_ota.wire.shapes import is_hex

NAMESPACE = "beacon"
TEXT_MAX = 128  # bytes of a text that a beacon reads
RECORD_MAX = 1024
SECRETS = frozenset(("wifi_pass", "wifi2_pass", "beacon_key", "fleet_key", "pin_w", "pop", "creds"))

_Check = Callable[[str], int | bytes]


def parse_settings(values: Mapping[str, str]) -> dict[str, int | bytes]:
    """Turn settings as people write them into NVS values, in NVS's order of keys.

    Known keys are checked and have their type: text, hex for keys, numbers, JSON. Any other
    key is text, or ``hex:…`` for bytes, or ``i32:…`` for a number.

    Raises:
        UsageError: ``setting_value``, with the key in the message.
        NvsError: ``nvs_key``.
    """
    found: dict[str, int | bytes] = {}
    for key in sorted(values):
        nvs_format.check_key(key)
        try:
            found[key] = _CHECKS.get(key, _parse_free)(values[key])
        except ValueError as error:
            found_value = None if key in SECRETS else values[key][:80]
            raise UsageError("setting_value", f"{key}: {error}", found=found_value) from None
    return found


def _text_check(low: int, high: int) -> _Check:
    def check(value: str) -> bytes:
        data = value.encode()
        if not low <= len(data) <= high:
            raise ValueError(f"{low} to {high} bytes")
        return data

    return check


def _hex_check(size: int) -> _Check:
    def check(value: str) -> bytes:
        if not is_hex(value.lower(), 2 * size):
            raise ValueError(f"{2 * size} hexadecimal digits")
        return bytes.fromhex(value)

    return check


def _number_check(low: int, high: int) -> _Check:
    def check(value: str) -> int:
        number = int(value, 0)
        if not low <= number <= high:
            raise ValueError(f"a number from {low} to {high}")
        return number

    return check


def _parse_ssid(value: str) -> bytes:
    """Read a network's name: text, ``hex:…``, or an argument of bytes that are no text."""
    kind, colon, rest = value.partition(":")
    data = bytes.fromhex(rest) if colon and kind == "hex" else os.fsencode(value)
    if not 1 <= len(data) <= 32:
        raise ValueError(f"1 to 32 bytes, not {len(data)}")
    return data


def _parse_password(value: str) -> bytes:
    if value and not 8 <= len(value.encode()) <= 63 and not is_hex(value.lower(), 64):
        raise ValueError("empty for an open network, 8 to 63 bytes, or 64 hexadecimal digits")
    return value.encode()


def _parse_url(value: str) -> bytes:
    try:
        tls, host, port = url.parse(value.strip())
    except ValueError as error:
        raise ValueError(f"http://host:port or https://host:port ({error})") from None
    return f"{'https' if tls else 'http'}://{host}:{port}".encode()


def _parse_identifier(value: str) -> bytes:
    if not auth.is_valid_id(value):
        raise ValueError(f"1 to {auth.MAX_ID} of A-Z a-z 0-9 . _ -")
    return value.encode()


def _parse_channel(value: str) -> bytes:
    if value not in ("stable", "beta"):
        raise ValueError("stable or beta")
    return value.encode()


def _parse_window(value: str) -> bytes:
    start, dash, end = value.partition("-")
    if not dash or start == end or not all(map(_is_time, (start, end))):
        raise ValueError("HH:MM-HH:MM, e.g. 03:00-05:00")
    return value.encode()


def _is_time(text: str) -> bool:
    hour, _, minute = text.partition(":")
    return (
        len(text) == 5
        and (hour + minute).isdigit()
        and text.isascii()
        and int(hour) < 24
        and int(minute) < 60
    )


def _parse_version(value: str) -> bytes:
    try:
        check_version(value)
    except AppError as error:
        raise ValueError(error.message) from None
    return value.encode()


def _parse_record(value: str) -> bytes:
    if not isinstance(json.loads(value), dict) or len(value.encode()) > RECORD_MAX:
        raise ValueError(f"a JSON object of at most {RECORD_MAX} bytes")
    return value.encode()


def _parse_free(value: str) -> int | bytes:
    kind, colon, rest = value.partition(":")
    if colon and kind == "hex":
        return bytes.fromhex(rest)
    if colon and kind == "i32":
        return _number_check(-(1 << 31), (1 << 31) - 1)(rest)
    return value.encode()


_CHECKS: dict[str, _Check] = {
    "wifi_ssid": _parse_ssid,
    "wifi_pass": _parse_password,
    "wifi2_ssid": _parse_ssid,
    "wifi2_pass": _parse_password,
    "orch_url": _parse_url,
    "beacon_key": _hex_check(32),
    "fleet_key": _hex_check(16),
    "beacon_id": _parse_identifier,
    "site": _text_check(1, 64),
    "window": _parse_window,
    "utc_off": _number_check(-12 * 60, 14 * 60),
    "channel": _parse_channel,
    "floor": _parse_version,
    "policy": _parse_record,
    "ibeacon": _hex_check(20),
    "pin_w": _hex_check(160),
    "pop": _text_check(8, 64),
    "ble": _number_check(0, 2),
    "crashes": _number_check(0, (1 << 31) - 1),
    "bad_slot": _number_check(0, 0xFFFF),
    "jrn_ack": _number_check(0, (1 << 31) - 1),
}
