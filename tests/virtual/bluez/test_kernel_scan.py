"""Cycles: one packet of each kind per device, an advertisement and its answer in one report."""

from bumble import hci

from beacon_ota.virtual.bluez.kernel_scan import KernelScan
from beacon_ota.virtual.radio.adapter import SCAN_RSP, AdvertiserData
from beacon_ota.virtual.radio.transport import AdvertisingReport

FIRST = hci.Address("D4:F9:8D:00:00:01", hci.Address.PUBLIC_DEVICE_ADDRESS)
SECOND = hci.Address("D4:F9:8D:00:00:02", hci.Address.PUBLIC_DEVICE_ADDRESS)
FRAME, OTHER = b"\x05\xff\x4c\x00\x02\x15", b"\x05\xff\x59\x00\x02\x15"
ANSWER = b"\x04\x09abc"
ADV_IND, ADV_NONCONN_IND = 0, 3


class Line:
    """Reports go in, found devices come out."""

    def __init__(self) -> None:
        self.found: list[AdvertiserData] = []
        self.scan = KernelScan(None, self.found.append)  # type: ignore[arg-type]

    def hear(self, kind: int, data: bytes, address: hci.Address = FIRST) -> None:
        self.scan._on_report(AdvertisingReport(kind, address, data, -50))

    def seen(self) -> list[tuple[str, list[int], str | None]]:
        found, self.found[:] = list(self.found), []
        return [(one.address.to_string(False), [*one.manufacturer_data], one.name) for one in found]


def test_two_packets_are_one_report():
    line = Line()
    line.hear(ADV_IND, FRAME)
    assert line.seen() == [], "a scan response may follow"
    line.hear(SCAN_RSP, ANSWER)
    assert line.seen() == [("D4:F9:8D:00:00:01", [0x004C], "abc")]


def test_of_two_frames_one_is_reported_per_cycle():
    line = Line()
    for _ in range(3):
        for frame in (FRAME, OTHER):
            line.hear(ADV_IND, frame)
            line.hear(SCAN_RSP, ANSWER)
    assert [makers for _, makers, _ in line.seen()] == [[0x004C]]
    line.scan.begin_cycle()
    line.hear(ADV_IND, OTHER)
    line.hear(SCAN_RSP, ANSWER)
    assert [makers for _, makers, _ in line.seen()] == [[0x0059]]


def test_an_answer_that_is_lost():
    """The advertisement is reported when the next device is heard; its answer by itself."""
    line = Line()
    line.hear(ADV_IND, FRAME)
    line.hear(ADV_IND, FRAME, SECOND)
    assert [address[-2:] for address, *_ in line.seen()] == ["01"]
    line.hear(SCAN_RSP, ANSWER)
    assert [(address[-2:], name) for address, _, name in line.seen()] == [
        ("02", None),
        ("01", "abc"),
    ]


def test_what_cannot_be_asked_is_reported_at_once():
    line = Line()
    line.hear(ADV_NONCONN_IND, FRAME)
    assert len(line.seen()) == 1
