from beacon_ota.wire import tlv
from beacon_ota.wire.tlv import CONFIG, CREDENTIALS, QUERY, STATE, TlvError

CONFIGURED = {
    "orch_url": "http://orchestrator.local:8080",
    "beacon_key": bytes(range(32)),
    "fleet_key": bytes(range(16)),
    "site": "Zürich/Haus 3",
    "window": "03:00-05:00",
    "utc_off": -210,
    "channel": "beta",
    "ibeacon": bytes(range(20)),
    "wifi2_ssid": b"backup \xff",
    "wifi2_pass": b"",
}
STATED = {
    "beacon_id": "c3-34851a",
    "version": "1.2.4-security",
    "image": bytes(32),
    "ip": "192.168.1.23",
    "poll": "ok",
    "device_type": "esp32c3-beacon",
    "refused": "window",
}


def refusal(data):
    try:
        tlv.decode(data)
    except TlvError as error:
        return error.field or error.what
    return None


def cannot_encode(kind, **fields):
    try:
        tlv.encode(kind, fields)
    except TlvError as error:
        return error.field
    return None


def test_there_and_back():
    for kind, fields in ((CONFIG, CONFIGURED), (STATE, STATED), (QUERY, {}), (CONFIG, {})):
        data = tlv.encode(kind, fields)
        assert data[0] == kind
        assert tlv.decode(data) == (kind, fields)
        for name in fields:
            assert tlv.decode(tlv.encode(kind, {name: fields[name]})) == (
                kind,
                {name: fields[name]},
            )


def test_the_bytes():
    data = tlv.encode(CONFIG, {"utc_off": -210, "site": "Z", "channel": None})
    assert data == b"\x01" + b"\x04\x01Z" + b"\x06\x02\xff\x2e"
    assert tlv.encode(STATE, {"ip": "10.0.0.1"}) == b"\x81\x04\x0810.0.0.1"
    assert tlv.encode(QUERY, {}) == b"\x02"


def test_everything_at_once_is_one_message():
    longest = dict(CONFIGURED)
    longest["orch_url"] = "https://" + "h" * 56 + "." + "h" * 57 + ":65535"
    longest["site"] = "s" * 64
    longest["wifi2_ssid"] = bytes(32)
    longest["wifi2_pass"] = bytes(64)
    data = tlv.encode(CONFIG, longest)
    assert len(data) < 450 and tlv.decode(data) == (CONFIG, longest)


def test_form():
    for data, what in (
        (b"", "size"),
        (bytes(1025), "size"),
        (b"\x00", "kind"),
        (b"\x05", "kind"),
        (b"\x80", "kind"),
        (b"\x01\x04", "cut off"),
        (b"\x01\x04\x02Z", "cut off"),
        (b"\x01\x04\x01Z\x04\x01Z", "order"),  # twice
        (b"\x01\x07\x06stable\x04\x01Z", "order"),
        (b"\x01\x00\x00", "order"),
        (b"\x01\x0b\x00", "tag 11"),
        (b"\x01\x7f\x00", "tag 127"),
        (b"\x02\x01\x00", "tag 1"),
        (b"\x04\x01\x00", "tag 1"),
    ):
        assert refusal(data) == what, data


def test_tags_of_later_versions_are_skipped():
    assert tlv.decode(b"\x01\x04\x01Z\x80\x02ab\xff\x00") == (CONFIG, {"site": "Z"})
    assert refusal(b"\x01\x80\x02a") == "cut off"
    assert refusal(b"\x01\x81\x00\x80\x00") == "order"


def field(tag, value):
    return b"\x01" + bytes((tag, len(value))) + value


def test_values():
    for data, name in (
        (field(0x01, b"http://"), "orch_url"),
        (field(0x01, b"https://"), "orch_url"),
        (field(0x01, b"http://a b/"), "orch_url"),
        (field(0x01, b"http://a\r\nX: y"), "orch_url"),
        (field(0x01, b"ftp://orchestrator"), "orch_url"),
        (field(0x01, "http://zürich".encode()), "orch_url"),
        (field(0x01, b"http://" + b"h" * 122), "orch_url"),
        (field(0x02, bytes(31)), "beacon_key"),
        (field(0x02, bytes(33)), "beacon_key"),
        (field(0x03, b""), "fleet_key"),
        (field(0x04, bytes(65)), "site"),
        (field(0x04, b"\xff"), "site"),
        (field(0x04, b"\xc3"), "site"),
        (field(0x05, b"3-5"), "window"),
        (field(0x05, b"03:00-03:00"), "window"),
        (field(0x05, b"24:00-05:00"), "window"),
        (field(0x05, b"03:60-05:00"), "window"),
        (field(0x05, b"03:00-05:000"), "window"),
        (field(0x06, b"\0"), "utc_off"),
        (field(0x06, b"\0\0\0"), "utc_off"),
        (field(0x06, b"\x03\x49"), "utc_off"),  # 841
        (field(0x06, b"\xfd\x2f"), "utc_off"),  # -721
        (field(0x07, b""), "channel"),
        (field(0x07, b"nightly"), "channel"),
        (field(0x08, bytes(21)), "ibeacon"),
        (field(0x09, bytes(33)), "wifi2_ssid"),
        (field(0x0A, bytes(65)), "wifi2_pass"),
    ):
        assert refusal(data) == name, data
    for data, value in (
        (field(0x05, b""), ""),
        (field(0x05, b"23:00-01:30"), "23:00-01:30"),
        (field(0x04, b""), ""),
        (field(0x06, b"\x03\x48"), 840),
        (field(0x06, b"\xfd\x30"), -720),
        (field(0x07, b"stable"), "stable"),
    ):
        assert list(tlv.decode(data)[1].values()) == [value]


def test_what_is_written_is_held_to_the_same_rules():
    assert cannot_encode(CONFIG, color="red") == "color"
    assert cannot_encode(CONFIG, ip="10.0.0.1") == "ip"
    assert cannot_encode(CONFIG, site="s" * 65) == "site"
    assert cannot_encode(CONFIG, orch_url="orchestrator") == "orch_url"
    assert cannot_encode(CONFIG, utc_off=841) == "utc_off"
    assert cannot_encode(CONFIG, utc_off=70000) == "utc_off"
    assert cannot_encode(CONFIG, beacon_key=bytes(16)) == "beacon_key"
    assert cannot_encode(STATE, version="") == "version"
    assert cannot_encode(CREDENTIALS, creds=bytes(19)) == "creds"


def test_credentials():
    for count in (0, 1, 32):
        blob = bytes(range(20)) * count
        data = tlv.encode(CREDENTIALS, {"creds": blob})
        assert data == b"\x03" + blob and tlv.decode(data) == (CREDENTIALS, {"creds": blob})
    for size in (1, 19, 21, 660):
        assert refusal(b"\x03" + bytes(size)) == "creds"
