"""What is kept of a device: the last value of each kind, whatever is sent now."""

from bumble import hci

from beacon_ota.virtual.bluez.objects import ObjectTree
from beacon_ota.virtual.bluez.remote import RemoteDevice
from beacon_ota.virtual.radio.adapter import AdvertiserData

ADDRESS = "D4:F9:8D:00:00:01"


class Remembered:
    def __init__(self) -> None:
        self.signals: list[object] = []
        self.tree = ObjectTree(self.signals.append)
        self.device = RemoteDevice(self.tree, "/org/bluez/hci0", ADDRESS, "/nowhere")

    def hear(self, rssi: int = -50, **fields) -> int:
        """Take in a report; return how many signals that causes."""
        before = len(self.signals)
        self.device.record(AdvertiserData(hci.Address(ADDRESS), rssi, **fields))
        return len(self.signals) - before

    def known(self) -> dict:
        return dict(self.tree.properties(self.device.path) or {})


def test_values_stay():
    kept = Remembered()
    kept.hear(
        name="BLUFI_000001", service_data={"ffff": b"\x01"}, manufacturer_data={0x59: b"\x05"}
    )
    kept.hear(manufacturer_data={0x4C: b"\x02"})
    known = kept.known()
    assert known["Name"] == known["Alias"] == "BLUFI_000001"
    assert known["ServiceData"] == {"ffff": b"\x01"}
    assert known["ManufacturerData"] == {0x59: b"\x05", 0x4C: b"\x02"}
    kept.hear(manufacturer_data={0x59: b"\x06"})
    assert kept.known()["ManufacturerData"][0x59] == b"\x06"


def test_what_does_not_change_is_not_said():
    kept = Remembered()
    same = {"manufacturer_data": {0x4C: b"\x02"}}
    assert kept.hear(-50, **same) == 1
    assert kept.hear(-50, **same) == 0
    assert kept.hear(-57, **same) == 0 and kept.known()["RSSI"] == -50
    assert kept.hear(-58, **same) == 1 and kept.known()["RSSI"] == -58
    # Nobody scans any more: the signal is no longer known, and is news when it is heard again.
    kept.device.end_discovery()
    assert "RSSI" not in kept.known()
    assert kept.hear(-58, **same) == 1
