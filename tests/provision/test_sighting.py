"""What advertisements say, as packets hold them and as systems remember them."""

import pytest
from bleak.backends.device import BLEDevice
from bleak.backends.scanner import AdvertisementData

from beacon_ota.provision import sighting
from beacon_ota.provision.sighting import BeaconTable, Sighting
from beacon_ota.wire import adverts

ADDRESS = "7C:DF:A1:00:11:24"
NAME = "BLUFI_001124"
UUID = "6F2C9A44-0B1E-4D6A-9E57-2B1A7C3D5E01"  # what macOS calls a device
OFFER = {"0000ffff-0000-1000-8000-00805f9b34fb": b"\xec\1\3"}
PROVISIONED, OPEN, UPDATING = adverts.PROVISIONED, adverts.OPEN, adverts.UPDATING


class Ears:
    """A table, and a clock for it."""

    def __init__(self, monkeypatch, *, remembered: bool, address: str = ADDRESS) -> None:
        self.now = 1000.0
        self.table = BeaconTable(remembered=remembered)
        self.address = address
        monkeypatch.setattr(sighting.time, "monotonic", lambda: self.now)

    def hear(
        self,
        flags: int | None = None,
        *,
        offer: bool = False,
        name: str | None = None,
        cached: str | None = None,
        progress: int | None = None,
        rssi: int = -50,
        after: float = 1.0,
    ) -> Sighting | None:
        self.now += after
        makers = {} if flags is None else {0xFFFF: bytes([0xBE, flags]) + b"1.0.0"}
        if progress is not None:
            makers[0x0059] = bytes([progress])
        data = AdvertisementData(name, makers, OFFER if offer else {}, [], None, rssi, ())
        device = BLEDevice(self.address, cached, None)
        return self.table.record_advertisement(device, data)


def seen(found: Sighting | None) -> Sighting:
    assert found is not None
    return found


def test_what_is_missing_says_nothing(monkeypatch):
    """A remembered frame, name and progress do not count against the flags of the newest packet."""
    ears = Ears(monkeypatch, remembered=True)
    first = seen(ears.hear(OPEN, offer=True, name=NAME))
    assert first.open and first.state == "new"
    # The other frame was seen: still open. Then provisioned, and closed at once.
    assert seen(ears.hear(OPEN, after=100)).open
    closed = seen(ears.hear(PROVISIONED, offer=True, name=NAME))
    assert not closed.open and closed.state == "running"
    failed = seen(ears.hear(PROVISIONED | UPDATING, offer=True, progress=sighting.FAILED))
    assert failed.state == "failed"
    later = seen(ears.hear(PROVISIONED, offer=True, progress=sighting.FAILED))
    assert later.state == "running" and later.as_dict()["progress"] is None


def test_a_memory_from_before_the_scan(monkeypatch):
    """The first report of all holds what another program's scan left with the system."""
    ears = Ears(monkeypatch, remembered=True)
    found = seen(ears.hear(PROVISIONED, offer=True, name=NAME, progress=sighting.FAILED))
    assert not found.open and found.state == "running"


@pytest.mark.parametrize("remembered", [False, True])
def test_beacons_of_before_the_flags(monkeypatch, remembered):
    ears = Ears(monkeypatch, remembered=remembered)
    found = seen(ears.hear(0, offer=True, name=NAME))
    assert found.open and found.state == "new"
    assert seen(ears.hear(0, after=1)).open, "its frames take turns"
    closed = seen(ears.hear(PROVISIONED, offer=remembered, after=20))
    assert not closed.open
    # Opened again by its button: plain packets tell, remembered ones do not; it can be asked.
    again = seen(ears.hear(PROVISIONED, offer=True))
    assert again.open == (not remembered) and again.maybe_open == remembered
    # An update: in remembered reports, a progress is news when it changes.
    assert seen(ears.hear(PROVISIONED, progress=10)).updating == 10
    assert seen(ears.hear(PROVISIONED, progress=11)).updating == 11
    over = seen(ears.hear(PROVISIONED, progress=11 if remembered else None, after=40))
    assert over.updating is None


def test_no_packet_is_no_sighting(monkeypatch):
    """BlueZ reports a device of which a property has changed, too, without a signal strength."""
    ears = Ears(monkeypatch, remembered=True)
    found = seen(ears.hear(0))
    when = found.seen
    assert ears.hear(0, rssi=-127, after=5) is None
    assert (found.seen, found.rssi) == (when, -50)


def test_names_where_addresses_are_hidden(monkeypatch):
    """The name is in the proof of the PIN: nothing else may stand in for it."""
    ears = Ears(monkeypatch, remembered=True, address=UUID)
    found = seen(ears.hear(OPEN))
    assert (found.name, found.named, found.open) == (UUID, False, True)
    found = seen(ears.hear(OPEN, offer=True, name=NAME))
    assert (found.name, found.named) == (NAME, True)
    assert seen(ears.hear(PROVISIONED)).name == NAME
    # A closed one, whose name the system has kept; and a name that is not of provisioning.
    ears = Ears(monkeypatch, remembered=True, address=UUID)
    assert seen(ears.hear(PROVISIONED, cached=NAME)).name == NAME
    ears = Ears(monkeypatch, remembered=True, address=UUID)
    assert seen(ears.hear(PROVISIONED, cached="MPY ESP32")).name == UUID
