"""Readers of what comes over the air, under any bytes: named refusals, one spelling each."""

from hypothesis import given
from hypothesis import strategies as st

from beacon_ota.wire import adverts, ec1, scan, tlv, wifi, wifi_reader
from beacon_ota.wire.blufi import BlufiError

shaped = st.lists(
    st.tuples(st.sampled_from([*range(12), 0x80, 0xFF]), st.binary(max_size=40)), max_size=8
).map(lambda fields: b"".join(bytes((tag, len(value))) + value for tag, value in fields))


@given(st.sampled_from([1, 2, 3, 0x81, 0x10]), st.one_of(st.binary(max_size=1100), shaped))
def test_tlv(kind, body):
    data = bytes((kind,)) + body
    try:
        found, fields = tlv.decode(data)
    except tlv.TlvError:
        return
    assert found == kind and len(data) <= tlv.MAX_SIZE
    # What is accepted is canonical, but for the tags of later versions at its end.
    again = tlv.encode(kind, fields)
    assert data.startswith(again)
    assert again == data or data[len(again)] >= 0x80


config = st.fixed_dictionaries(
    {},
    optional={
        "orch_url": st.from_regex(
            r"https?://[a-z][a-z0-9]{0,30}(\.[a-z]{1,30}){0,2}", fullmatch=True
        ),
        "beacon_key": st.binary(min_size=32, max_size=32),
        "fleet_key": st.binary(min_size=16, max_size=16),
        "site": st.text(max_size=16),
        "window": st.sampled_from(["", "00:00-23:59", "22:15-04:45"]),
        "utc_off": st.integers(-720, 840),
        "channel": st.sampled_from(["stable", "beta"]),
        "ibeacon": st.binary(min_size=20, max_size=20),
        "wifi2_ssid": st.binary(max_size=32),
        "wifi2_pass": st.binary(max_size=64),
    },
)


@given(config)
def test_tlv_there_and_back(fields):
    assert tlv.decode(tlv.encode(tlv.CONFIG, fields)) == (tlv.CONFIG, fields)


@given(st.binary(max_size=200))
def test_reports_and_lists(data):
    try:
        fields = wifi_reader.parse_report(data)
        assert set(fields) <= {
            "opmode",
            "state",
            "clients",
            "bssid",
            "ssid",
            "retries",
            "reason",
            "rssi",
        }
    except BlufiError:
        pass
    try:
        assert wifi.build_list(wifi_reader.parse_list(data)) == data
    except BlufiError:
        pass


@given(st.lists(st.tuples(st.binary(max_size=32), st.integers(-128, 127)), max_size=60))
def test_lists_there_and_back(networks):
    read = wifi_reader.parse_list(wifi.build_list(networks))
    assert read == networks[: len(read)]


@given(
    st.one_of(st.binary(max_size=90), st.binary(max_size=90).map(lambda b: b"\xec\1" + b)),
    st.sampled_from([ec1.C_HELLO, ec1.S_HELLO, ec1.C_FIN, ec1.S_FIN]),
)
def test_ec1(data, type_):
    try:
        body = ec1.parse_message(data, type_, (ec1.SPAKE2, ec1.ECDH))
    except ec1.Abort:
        return
    assert ec1.build_message(type_, data[3], body) == data


@given(st.binary(max_size=62), st.binary(max_size=31))
def test_scan(first, second):
    found = scan.read_payloads(first, second)
    assert set(found) <= {
        "ibeacon",
        "power",
        "progress",
        "flags",
        "version",
        "suites",
        "name",
        "blufi",
    }
    assert found.get("progress", 0) in (*range(101), 0xFE, 0xFF)


@given(st.integers(0, 127), st.text("0123456789.-abc+", max_size=40), st.integers(0, 100))
def test_scan_responses(flags, version, percent):
    response = adverts.build_progress(percent) + adverts.build_status(flags, version)
    assert len(response) <= adverts.MAX_PAYLOAD
    assert scan.read_payloads(response) == {
        "progress": percent,
        "flags": flags,
        "version": version[: adverts.MAX_VERSION],
    }
