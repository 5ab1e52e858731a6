"""D-Bus objects: their properties by interface, and the signals that changes of them cause."""

from collections.abc import Callable, Mapping
from typing import Any

from dbus_fast import Message, Variant

PROPERTIES = "org.freedesktop.DBus.Properties"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
ADAPTER = "org.bluez.Adapter1"
DEVICE = "org.bluez.Device1"
SERVICE = "org.bluez.GattService1"
CHARACTERISTIC = "org.bluez.GattCharacteristic1"
DESCRIPTOR = "org.bluez.GattDescriptor1"

# Types of the properties that are not text.
_TYPES = {
    "Adapter": "o",
    "Blocked": "b",
    "Bonded": "b",
    "Characteristic": "o",
    "Connected": "b",
    "Device": "o",
    "Discoverable": "b",
    "Discovering": "b",
    "Flags": "as",
    "LegacyPairing": "b",
    "MTU": "q",
    "ManufacturerData": "a{qv}",
    "Notifying": "b",
    "Pairable": "b",
    "Paired": "b",
    "Powered": "b",
    "Primary": "b",
    "RSSI": "n",
    "Roles": "as",
    "Service": "o",
    "ServiceData": "a{sv}",
    "ServicesResolved": "b",
    "Trusted": "b",
    "TxPower": "n",
    "UUIDs": "as",
    "Value": "ay",
}


def wrap_properties(properties: Mapping[str, Any]) -> dict[str, Variant]:
    """Return properties as D-Bus has them: each a variant, as are the values of a dictionary."""
    wrapped = {}
    for name, value in properties.items():
        kind = _TYPES.get(name, "s")
        if kind in ("a{qv}", "a{sv}"):
            value = {key: Variant("ay", data) for key, data in value.items()}
        wrapped[name] = Variant(kind, value)
    return wrapped


class ObjectTree:
    """The objects of the service.

    Args:
        emit: sends a signal.
    """

    def __init__(self, emit: Callable[[Message], None]) -> None:
        self._emit = emit
        self._objects: dict[str, tuple[str, dict[str, Any]]] = {}

    def add(self, path: str, interface: str, properties: dict[str, Any]) -> None:
        """Add an object."""
        self._objects[path] = (interface, properties)
        added = {interface: wrap_properties(properties)}
        self._emit(
            Message.new_signal("/", OBJECT_MANAGER, "InterfacesAdded", "oa{sa{sv}}", [path, added])
        )

    def remove(self, path: str) -> None:
        """Remove an object and those below it."""
        for one in sorted((x for x in self._objects if x.startswith(path + "/")), reverse=True):
            self.remove(one)
        interface, _ = self._objects.pop(path)
        self._emit(
            Message.new_signal("/", OBJECT_MANAGER, "InterfacesRemoved", "oas", [path, [interface]])
        )

    def change(self, path: str, *invalidated: str, **changed: Any) -> None:
        """Set properties of an object, and remove others; what does not change causes no signal."""
        interface, properties = self._objects[path]
        changed = {
            name: value
            for name, value in changed.items()
            if name == "Value" or properties.get(name) != value
        }
        gone = [name for name in invalidated if properties.pop(name, None) is not None]
        if not changed and not gone:
            return
        properties.update(changed)
        body = [interface, wrap_properties(changed), gone]
        self._emit(Message.new_signal(path, PROPERTIES, "PropertiesChanged", "sa{sv}as", body))

    def properties(self, path: str) -> dict[str, Any] | None:
        """Return the properties of an object, None when there is no such object."""
        found = self._objects.get(path)
        return found[1] if found else None

    def interface(self, path: str) -> str:
        """Return the interface of an object, "" when there is no such object."""
        return self._objects[path][0] if path in self._objects else ""

    def list_all(self) -> dict[str, dict[str, dict[str, Variant]]]:
        """Return all objects, as ``GetManagedObjects`` does."""
        return {
            path: {interface: wrap_properties(properties)}
            for path, (interface, properties) in self._objects.items()
        }
