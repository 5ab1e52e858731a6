from binascii import unhexlify as unhex

from beacon_ota.wire import wifi, wifi_reader
from beacon_ota.wire.blufi import E_FORMAT, MAX_MESSAGE, BlufiError


def refused(call, data):
    try:
        call(data)
    except BlufiError as error:
        return error.code == E_FORMAT
    return False


def test_reports_as_the_firmware_writes_them():
    connected = wifi.build_report(wifi.CONNECTED, bssid=unhex("a1b2c3d4e5f6"), ssid=b"TestNet")
    assert connected == unhex("0100000106a1b2c3d4e5f6020754657374" + "4e6574")
    assert wifi.build_report(wifi.CONNECTING, retries=2) == unhex("010200140102")
    failed = wifi.build_report(wifi.FAILED, reason=201, rssi=wifi.UNKNOWN_RSSI)
    assert failed == unhex("0101001501c9160180")


def test_reports_are_read_back():
    for fields in (
        {},
        {"bssid": b"abcdef", "ssid": b"TestNet"},
        {"retries": 3},
        {"reason": wifi.UNKNOWN_REASON, "rssi": -71},
        {"ssid": b""},
        {"bssid": b"abcdef", "ssid": bytes(32), "retries": 0, "reason": 0, "rssi": 0},
    ):
        for state in (wifi.CONNECTED, wifi.FAILED, wifi.CONNECTING, wifi.NO_ADDRESS):
            wanted = {"opmode": 1, "state": state, "clients": 0}
            wanted.update(fields)
            assert wifi_reader.parse_report(wifi.build_report(state, **fields)) == wanted


def test_fields_in_any_order_and_unknown_ones():
    data = unhex("020003" + "1601b9" + "7f0301020304" + "aa" + "00" + "0201" + "41")
    found = wifi_reader.parse_report(
        data[:3] + unhex("1601b9") + unhex("7f03010203") + unhex("020141")
    )
    assert found == {"opmode": 2, "state": 0, "clients": 3, "rssi": -71, "ssid": b"A"}


def test_reports_that_are_cut_off_or_bent():
    for text in (
        "",
        "0100",
        "01000001",
        "0100000106",
        "0100000106a1b2c3d4e5",
        "0100000107a1b2c3d4e5f600",  # a BSSID of seven bytes
        "010000" + "0221" + "41" * 33,  # an SSID of 33
        "0100001600",
        "010000150201ff",
    ):
        assert refused(wifi_reader.parse_report, unhex(text)), text


def test_lists():
    assert wifi.build_list([(b"Cafe", -71)]) == unhex("05b943616665")
    networks = [(b"Cafe", -71), (b"", -90), (bytes(range(32)), 0), (b"x", -128), (b"y", 127)]
    assert wifi_reader.parse_list(wifi.build_list(networks)) == networks
    assert wifi.build_list([]) == b"" and wifi_reader.parse_list(b"") == []


def test_a_list_fits_a_message():
    many = [(b"network number %02d" % (i % 100), -i) for i in range(128)]
    data = wifi.build_list(many)
    assert MAX_MESSAGE - 34 < len(data) <= MAX_MESSAGE
    read = wifi_reader.parse_list(data)
    assert read == many[: len(read)]


def test_lists_that_are_cut_off_or_bent():
    for text in ("00", "01", "05b94361", "05b94361666500", "22b9" + "41" * 33, "ff" * 40):
        assert refused(wifi_reader.parse_list, unhex(text)), text
