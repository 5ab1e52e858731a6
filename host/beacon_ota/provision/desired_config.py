"""The desired configuration of a beacon: parsed from text, and checked before a connection."""

import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from beacon_ota.errors import UsageError
from beacon_ota.images import settings
from beacon_ota.provision import session
from beacon_ota.wire import access, ec1

MIN_PIN, MAX_PIN = 4, 64
_DEVICE_TYPE = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_TEXTS = ("orch_url", "site", "window", "channel")


@dataclass(frozen=True)
class Secret:
    """The secret of a beacon's label: a PIN or a proof of possession, exactly one of them."""

    pin: str | None = field(default=None, repr=False)
    pop: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.pin is None) == (self.pop is None):
            raise UsageError("secret", "give either the PIN or the proof of possession")
        if self.pin is not None and not MIN_PIN <= len(self.pin) <= MAX_PIN:
            raise UsageError(
                "secret", "that is no PIN", expected=f"{MIN_PIN} to {MAX_PIN} characters"
            )
        if self.pop is not None and not ec1.MIN_POP <= len(self.pop) <= 64:
            raise UsageError(
                "secret",
                "a proof of possession has 8 to 64 bytes",
                found=f"{len(self.pop)} bytes",
            )


@dataclass(frozen=True)
class Network:
    """A WiFi network: SSID of 1 to 32 bytes, password of 8 to 63, empty for an open one."""

    ssid: bytes
    password: bytes = field(default=b"", repr=False)

    @classmethod
    def of(cls, ssid: str | bytes, password: str = "") -> "Network":
        """Check names and passwords as people write them; ``hex:…`` is a name that is no text.

        Raises:
            UsageError: ``setting_value``.
        """
        raw = (
            settings.parse_settings({"wifi_ssid": ssid})["wifi_ssid"]
            if isinstance(ssid, str)
            else ssid
        )
        assert isinstance(raw, bytes)
        if not 1 <= len(raw) <= 32:
            raise UsageError("setting_value", "ssid: 1 to 32 bytes", found=f"{len(raw)} bytes")
        key = settings.parse_settings({"wifi_pass": password})["wifi_pass"]
        assert isinstance(key, bytes)
        return cls(raw, key)


@dataclass(frozen=True)
class DesiredConfig:
    """The desired configuration of one beacon.

    Attributes:
        network: to join; None leaves it as it is, or to be chosen from what the beacon sees.
        config: fields of CONFIG (``wire/tlv.py``), the beacon's key aside.
        tags: for the orchestrator.
        creds: what opens the door, see :func:`parse_credentials`; None leaves it as it is.
        bound: ids among them of which a beacon gets its own key only, see :func:`parse_bound_ids`.
        device_type: the board as given by the caller. A board that the beacon itself names counts.
    """

    network: Network | None = None
    config: Mapping[str, str | bytes | int] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    creds: bytes | None = field(default=None, repr=False)
    bound: frozenset[bytes] = frozenset()
    device_type: str = ""

    def credentials_for(self, beacon_id: str) -> bytes:
        """Return what this beacon is to hold: of a bound credential its key for this door."""
        found, creds = b"", self.creds or b""
        for at in range(0, len(creds), access.ID + access.SECRET):
            ident = creds[at : at + access.ID]
            secret = creds[at + access.ID : at + access.ID + access.SECRET]
            if ident in self.bound:
                secret = access.door_key(session.hmac_sha256, secret, beacon_id)
            found += ident + secret
        return found


def check_device_type(text: str | None) -> str:
    """Return a given device type, "" for none (UsageError ``type_syntax``)."""
    if text and _DEVICE_TYPE.fullmatch(text) is None:
        raise UsageError("type_syntax", "that is no device type", found=text, expected="esp32c3")
    return text or ""


def config_fields(
    values: Mapping[str, str | None], second: Network | None = None
) -> dict[str, str | bytes | int]:
    """Return the fields of a CONFIG.

    Args:
        values: ``orch_url``, ``fleet_key`` (hex), ``site``, ``window``, ``utc_off``, ``channel``,
            ``ibeacon`` (``UUID:major:minor``); what is None is left away.
        second: network for when the first fails.

    Raises:
        UsageError: ``setting_value``.
    """
    given = {name: value for name, value in values.items() if value is not None}
    if "ibeacon" in given:
        given["ibeacon"] = parse_position(given["ibeacon"]).hex()
    found: dict[str, str | bytes | int] = {}
    for name, value in settings.parse_settings(given).items():
        found[name] = value.decode() if name in _TEXTS and isinstance(value, bytes) else value
    if second is not None:
        found |= {"wifi2_ssid": second.ssid, "wifi2_pass": second.password}
    return found


def parse_position(text: str) -> bytes:
    """Read an iBeacon identity, ``UUID:major:minor`` (20 bytes).

    Raises:
        UsageError: ``setting_value``.
    """
    first, _, rest = text.partition(":")
    major, _, minor = rest.partition(":")
    try:
        return uuid.UUID(first).bytes + b"".join(
            int(part).to_bytes(2, "big") for part in (major, minor)
        )
    except (ValueError, OverflowError):
        raise UsageError(
            "setting_value",
            "ibeacon: not an identity",
            found=text[:80],
            expected="UUID:major:minor, both numbers up to 65535",
        ) from None


def parse_credentials(text: str) -> bytes:
    """Read access credentials, a line each: ``id:secret`` or ``id:secret:bound``; # for comments.

    Id and secret are hex, 4 and 16 bytes. Which ones are bound says :func:`parse_bound_ids`.

    Raises:
        UsageError: ``setting_value``, with the line.
    """
    found = b"".join(ident + secret for ident, secret, _ in _credential_lines(text))
    if len(found) > access.MAX_CREDENTIALS * (access.ID + access.SECRET):
        raise UsageError(
            "setting_value", "too many credentials", expected=f"at most {access.MAX_CREDENTIALS}"
        )
    return found


def parse_bound_ids(text: str) -> frozenset[bytes]:
    """Return the ids of the credentials whose line ends in ``:bound``.

    Raises:
        UsageError: as :func:`parse_credentials`.
    """
    return frozenset(ident for ident, _, only in _credential_lines(text) if only)


def _credential_lines(text: str) -> Iterator[tuple[bytes, bytes, bool]]:
    for number, line in enumerate(text.splitlines(), 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        ident, _, rest = line.partition(":")
        secret, colon, word = rest.partition(":")
        try:
            pair = bytes.fromhex(ident), bytes.fromhex(secret)
        except ValueError:
            pair = b"", b""
        sizes = len(pair[0]), len(pair[1])
        if sizes != (access.ID, access.SECRET) or colon and word.strip() != "bound":
            raise UsageError(
                "setting_value",
                f"credentials, line {number}: not id:secret in hex",
                expected=f"{2 * access.ID} digits, a colon, {2 * access.SECRET} digits, "
                "and :bound for a credential that has another key at each door",
            )
        yield pair[0], pair[1], bool(colon)


def reachable_url(url: str | None) -> str | None:
    """Return the address of an orchestrator as beacons can use it, None when they cannot.

    ``127.0.0.1`` on a laptop is no place for a beacon to go: it then looks for
    ``orchestrator.local`` and over mDNS.
    """
    parts = urlsplit(url or "")
    host = (parts.hostname or "").lower()
    if not host or host == "localhost" or host.startswith("127.") or host == "::1":
        return None
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
