"""Objects, their properties, and the signals of their changes."""

from typing import Any

from dbus_fast import Message, unpack_variants

from beacon_ota.virtual.bluez.objects import CHARACTERISTIC, DEVICE, ObjectTree, wrap_properties

PATH = "/org/bluez/hci0/dev_1"


class Listener:
    def __init__(self) -> None:
        self.signals: list[Message] = []
        self.tree = ObjectTree(self.signals.append)

    def heard(self) -> list[tuple[Any, list[Any]]]:
        found = [(one.member, unpack_variants(one.body)) for one in self.signals]
        self.signals.clear()
        return found


def test_types_of_properties():
    wrapped = wrap_properties({"RSSI": -40, "ManufacturerData": {76: b"x"}, "Name": "n"})
    assert {name: one.signature for name, one in wrapped.items()} == {
        "RSSI": "n",
        "ManufacturerData": "a{qv}",
        "Name": "s",
    }
    assert wrapped["ManufacturerData"].value[76].signature == "ay"


def test_a_change_is_a_signal_and_no_change_is_none():
    at = Listener()
    at.tree.add(PATH, DEVICE, {"Connected": False, "RSSI": -40})
    assert at.heard() == [("InterfacesAdded", [PATH, {DEVICE: {"Connected": False, "RSSI": -40}}])]
    at.tree.change(PATH, Connected=False)
    assert at.heard() == []
    at.tree.change(PATH, "RSSI", "TxPower", Connected=True)
    assert at.heard() == [("PropertiesChanged", [DEVICE, {"Connected": True}, ["RSSI"]])]
    assert at.tree.properties(PATH) == {"Connected": True}


def test_the_same_value_twice_is_announced_twice():
    at = Listener()
    at.tree.add(PATH, CHARACTERISTIC, {})
    at.heard()
    for _ in range(2):
        at.tree.change(PATH, Value=b"x")
    assert len(at.heard()) == 2


def test_what_is_below_goes_first():
    at = Listener()
    for path in (PATH, PATH + "/a", PATH + "/a/b", PATH + "0"):
        at.tree.add(path, DEVICE, {})
    at.heard()
    at.tree.remove(PATH)
    assert [body[0] for _, body in at.heard()] == [PATH + "/a/b", PATH + "/a", PATH]
    assert list(at.tree.list_all()) == [PATH + "0"]
    assert at.tree.interface(PATH) == "" and at.tree.properties(PATH) is None
