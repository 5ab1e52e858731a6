"""Settings as people write them, and as NVS holds them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beacon_ota.errors import BeaconOtaError, UsageError
from beacon_ota.images import nvs, settings

GOOD = {
    "wifi_ssid": ("Halle 3 ü", "Halle 3 ü".encode()),
    "wifi_pass": ("correct horse", b"correct horse"),
    "wifi2_ssid": ("spare", b"spare"),
    "wifi2_pass": ("", b""),
    "orch_url": ("http://orchestrator.local:8080/", b"http://orchestrator.local:8080"),
    "beacon_key": ("Ab" * 32, b"\xab" * 32),
    "fleet_key": ("00" * 16, bytes(16)),
    "beacon_id": ("b-017", b"b-017"),
    "site": ("hq/3", b"hq/3"),
    "window": ("23:30-01:00", b"23:30-01:00"),
    "utc_off": ("-90", -90),
    "channel": ("beta", b"beta"),
    "floor": ("1.2.3-rc.1", b"1.2.3-rc.1"),
    "policy": ('{"poll_s":60}', b'{"poll_s":60}'),
    "ibeacon": ("01" * 20, b"\1" * 20),
    "ble": ("2", 2),
    "free": ("any text", b"any text"),
    "free_bytes": ("hex:00ff", b"\0\xff"),
    "free_number": ("i32:-5", -5),
}

BAD = [
    ("wifi_ssid", ""),
    ("wifi_ssid", "x" * 33),
    ("wifi_ssid", "ü" * 17),
    ("wifi_pass", "short"),
    ("wifi_pass", "x" * 64),
    ("orch_url", "orchestrator.local:8080"),
    ("orch_url", "ftp://host"),
    ("orch_url", "http://"),
    ("orch_url", "http://host/path"),
    ("orch_url", "http://user@host"),
    ("orch_url", "http://host:0"),
    ("orch_url", "http://host:99999"),
    ("orch_url", "http://host:x"),
    ("orch_url", "http://[::1"),
    ("orch_url", "http://" + "h" * 200),
    ("beacon_key", "ab" * 31),
    ("beacon_key", "zz" * 32),
    ("fleet_key", ""),
    ("beacon_id", ""),
    ("beacon_id", "a b"),
    ("beacon_id", "x" * 65),
    ("window", "3:00-05:00"),
    ("window", "03:00"),
    ("window", "03:00-03:00"),
    ("window", "24:00-05:00"),
    ("window", "03:60-05:00"),
    ("window", "0３:00-05:00"),
    ("utc_off", "1000"),
    ("utc_off", "one"),
    ("channel", "gamma"),
    ("floor", "1.2"),
    ("policy", "[]"),
    ("policy", "{"),
    ("policy", '{"x":"' + "y" * 2000 + '"}'),
    ("ibeacon", "00"),
    ("ble", "3"),
    ("free", "hex:0"),
    ("free", "i32:4294967296"),
]


def test_every_setting_has_its_form():
    given_values = {key: text for key, (text, _) in GOOD.items()}
    found = settings.parse_settings(given_values)
    assert found == {key: value for key, (_, value) in GOOD.items()}
    assert list(found) == sorted(found)
    image = nvs.generate_partition({settings.NAMESPACE: found}, 0x4000)
    assert nvs.read_partition(image).namespace("beacon") == found


@pytest.mark.parametrize("key, text", BAD)
def test_what_a_setting_cannot_be(key, text):
    with pytest.raises(UsageError) as caught:
        settings.parse_settings({key: text})
    assert caught.value.code == "setting_value"
    assert key in caught.value.message


def test_secrets_are_not_repeated():
    for key, text in (("wifi_pass", "secret1"), ("beacon_key", "secret")):
        with pytest.raises(UsageError) as caught:
            settings.parse_settings({key: text})
        assert text not in str(caught.value.as_dict())


def test_names_are_nvs_names():
    with pytest.raises(nvs.NvsError):
        settings.parse_settings({"a_name_that_is_long": "x"})


@given(st.sampled_from(sorted(GOOD)), st.text(max_size=80))
def test_arbitrary_text_is_taken_or_refused_by_name(key, text):
    try:
        value = settings.parse_settings({key: text})[key]
    except BeaconOtaError as error:
        assert error.code == "setting_value"
        return
    assert isinstance(value, int | bytes)
