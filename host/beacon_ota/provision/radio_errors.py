"""What bleak and the systems below it raise, and what the operator can do about it."""

import sys
from typing import TYPE_CHECKING

from beacon_ota.errors import ReachError

if TYPE_CHECKING:
    from beacon_ota.virtual.radio.selection import RadioSelection

_START_BLUETOOTH = "start it with: systemctl start bluetooth"
# D-Bus errors by the last word of their names.
_DBUS_ADVICE = {
    "ServiceUnknown": f"the Bluetooth service does not run: {_START_BLUETOOTH}",
    "NameHasNoOwner": f"the Bluetooth service does not run: {_START_BLUETOOTH}",
    "NoReply": f"the Bluetooth service has ended: {_START_BLUETOOTH}",
    "AccessDenied": "you may not use Bluetooth: join the group bluetooth, and log in again",
    "NotReady": "turn Bluetooth on",
    "Disconnected": "the D-Bus service has ended: start it, and Bluetooth",
}
# Parts of the names of errors by which D-Bus says that it could not start the service.
_NOT_STARTED = ("org.freedesktop.DBus.Error.Spawn", "org.freedesktop.systemd1")
_BUSY = ("InProgress", "Busy")


def radio_failures() -> tuple[type[Exception], ...]:
    """Return the exceptions by which bleak says that something did not work.

    Beside bleak's own there are those of the system (``OSError`` on Windows, and without D-Bus),
    those of a D-Bus connection that has ended (``EOFError``, ``AssertionError``), and those of
    :mod:`dbus_fast`.
    """
    from bleak.exc import BleakError

    found = (BleakError, OSError, TimeoutError, EOFError, AssertionError)
    if sys.platform == "linux":
        from dbus_fast.errors import DBusFastError

        return (*found, DBusFastError)
    return found


def bluetooth_error(radio: "RadioSelection", error: Exception | None, doing: str) -> ReachError:
    """Return the error for an adapter that cannot be used.

    Args:
        error: what was raised; None when the adapter is known to have gone.
        doing: what did not work, for the message.

    Returns:
        ``bluetooth_busy`` when another program has it for the moment, else ``bluetooth_off``.
    """
    found = None if error is None else _describe(error)
    if error is not None and is_busy(error):
        return ReachError(
            "bluetooth_busy",
            f"{doing} with {radio.name} does not work: Bluetooth is busy, with another program or "
            "another command; end that, or try again",
            found=found,
        )
    return ReachError(
        "bluetooth_off",
        f"{doing} with {radio.name} does not work: {_advice(radio, error)}",
        found=found,
    )


def is_busy(error: Exception) -> bool:
    """Whether an adapter may be free again in a moment."""
    return _dbus_word(error) in _BUSY


def _describe(error: Exception) -> str:
    """Return an exception as one line of text."""
    from bleak.exc import BleakBluetoothNotAvailableError

    if isinstance(error, BleakBluetoothNotAvailableError):
        return str(error.args[0])  # its text would be a tuple
    return str(error) or type(error).__name__


def _dbus_word(error: Exception | None) -> str:
    from bleak.exc import BleakDBusError

    return error.dbus_error.rpartition(".")[2] if isinstance(error, BleakDBusError) else ""


def _advice(radio: "RadioSelection", error: Exception | None) -> str:
    from bleak.exc import BleakBluetoothNotAvailableError
    from bleak.exc import BleakBluetoothNotAvailableReason as Reason

    if isinstance(error, BleakBluetoothNotAvailableError):
        if radio.virtual:
            return str(error.args[0])
        if error.reason is Reason.POWERED_OFF:
            return "turn Bluetooth on"
        if error.reason in (Reason.NO_BLUETOOTH, Reason.NO_BLE_CENTRAL_ROLE):
            return "this computer has no Bluetooth adapter that can be used: plug one in"
        if error.reason is not Reason.UNKNOWN:
            return "allow this program to use Bluetooth, in the system's settings for privacy"
    if (word := _dbus_word(error)) in _DBUS_ADVICE:
        return _DBUS_ADVICE[word]
    if any(part in str(error) for part in _NOT_STARTED):
        return _DBUS_ADVICE["ServiceUnknown"]
    if isinstance(error, (FileNotFoundError, ConnectionRefusedError)) and radio.on_bluez:
        return "there is no D-Bus: install and start dbus and bluez"
    if isinstance(error, (EOFError, ConnectionError, AssertionError)) and radio.on_bluez:
        return "the D-Bus service has ended: start it, and Bluetooth"
    if error is not None and "not found" in str(error) and "adapter" in str(error):
        return "there is no such adapter; bluetoothctl list shows them"
    return "is Bluetooth on, and may you use it?"
