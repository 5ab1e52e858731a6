"""What a beacon reports during provisioning: its state, its WiFi, and the errors they stand for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from beacon_ota.errors import DeniedError, InputError, ReachError
from beacon_ota.wire import wifi
from beacon_ota.wire.blufi_names import error_name, reason_name

_WRONG_PASSWORD_REASONS = ("wrong_password", "handshake_timeout", "connection_failed")
_SECURITY_REASONS = ("incompatible_security", "weak_security")
NOT_FOUND = "no_such_network"


@dataclass(frozen=True)
class StateReport:
    """The state that a beacon reports of itself (STATE of ``wire/tlv.py``)."""

    beacon_id: str = ""
    version: str = ""
    image: str = ""
    ip: str = ""
    poll: str = "none"
    device_type: str = ""
    refused: str = ""

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "StateReport":
        """Return the report of the decoded fields of a STATE message."""
        return cls(**{**fields, "image": fields.get("image", b"").hex()})

    def as_dict(self) -> dict[str, object]:
        """Return the fields for ``--json``."""
        return {key: value or None for key, value in vars(self).items()}


@dataclass(frozen=True)
class WifiReport:
    """The state of the beacon's WiFi: ``connected``, ``connecting``, ``no_address``, ``failed``."""

    word: str
    ssid: bytes = b""
    rssi: int | None = None
    reason: str = ""

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "WifiReport":
        """Return the report of the fields that :func:`wifi_reader.parse_report` found."""
        word = _WIFI_STATES.get(fields["state"], "unknown")
        reason = str(reason_name(fields["reason"])) if "reason" in fields else ""
        return cls(word, fields.get("ssid", b""), fields.get("rssi"), reason)


_WIFI_STATES = {
    wifi.CONNECTED: "connected",
    wifi.FAILED: "failed",
    wifi.CONNECTING: "connecting",
    wifi.NO_ADDRESS: "no_address",
}


def setting_refused(name: str, state: StateReport) -> InputError:
    """Return the error for a setting that a beacon refuses."""
    return InputError(
        "setting_refused",
        f"{name} refuses {state.refused}: nothing of that message was stored",
        found=state.refused,
    )


def join_error(name: str, ssid: bytes, report: WifiReport) -> DeniedError | ReachError:
    """Return the error for a beacon that did not join a network."""
    network = ssid.decode("utf-8", "replace")
    kept = "what it had before is kept"
    if report.reason in _WRONG_PASSWORD_REASONS:
        return DeniedError(
            "wifi_wrong_password",
            f"{network!r} does not take this password; {kept}",
            found=report.reason,
        )
    if report.reason in _SECURITY_REASONS:
        return DeniedError(
            "wifi_security",
            f"{network!r} has another kind of security than {name} was told: it needs a password, "
            f"or none, and WPA2 or WPA3 with one password for all; {kept}",
            found=report.reason,
        )
    if report.reason == NOT_FOUND:
        return ReachError(
            "wifi_not_found",
            f"{name} sees no network {network!r}: it has 2.4 GHz only, "
            f"and upper and lower case count; {kept}",
            found=report.reason,
        )
    return ReachError(
        "wifi_failed",
        f"{network!r} would not have {name}, or gave it no address: check the password, and "
        f"whether the signal is strong enough there; {kept}",
        found=report.reason,
    )


def listed_error(name: str, ssid: bytes, rssi: int) -> ReachError:
    """Return the error for a network that the beacon lists and twice did not find."""
    network = ssid.decode("utf-8", "replace")
    return ReachError(
        "wifi_failed",
        f"{name} sees {network!r} ({rssi} dBm), and could not join it: check the password; a weak "
        "signal may be the cause, too; what it had before is kept",
        found=NOT_FOUND,
    )


def poll_error(name: str, state: StateReport) -> DeniedError | ReachError:
    """Return the error for a beacon on WiFi whose poll the orchestrator did not answer."""
    word = state.poll
    address = f"(its address is {state.ip}) " if state.ip else ""
    if word == "refused":
        return DeniedError(
            "poll_refused",
            f"the orchestrator does not take {name}: it is not registered as "
            f"{state.beacon_id}, or with another key; provision it again. (An older release says "
            "the same when something else answers at that address)",
            found=word,
        )
    if word == "stranger":
        return ReachError(
            "poll_stranger",
            f"{name} {address}is on WiFi, but something answers there that is not the "
            "orchestrator: a network's sign-in page, or another server at the address it was given",
            found=word,
        )
    return ReachError(
        "poll_" + word,
        f"{name} {address}is on WiFi, but does not reach the orchestrator: check the "
        "address it was given, and whether that network leads there",
        found=word,
    )


def peer_error(name: str, data: bytes) -> InputError | ReachError | DeniedError:
    """Return the error for an error frame of BluFi."""
    word = error_name(data[0]) if data else "none"
    if word == "scan":
        return ReachError("wifi_scan", f"{name} cannot look for networks now: try again")
    if word == "security":
        return DeniedError(
            "closed",
            f"{name} will not be provisioned now: press its button briefly and try again",
        )
    return InputError(f"blufi_{word}", f"{name} refuses what it was sent", found=f"error {word}")
