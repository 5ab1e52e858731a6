"""What people write: settings, credentials, batch files, labels; and what anybody may advertise."""

import csv
import hmac
import io

import pytest
from bleak.backends.device import BLEDevice
from bleak.backends.scanner import AdvertisementData
from hypothesis import given
from hypothesis import strategies as st

from beacon_ota.errors import BeaconOtaError, InputError, UsageError
from beacon_ota.provision import batch, desired_config, labels, monitor, scan
from beacon_ota.wire import access, adverts, tlv

COMMON = {"ssid": "site", "password": "correct horse"}


def rows(text: str, **common: str | None) -> list[batch.Row]:
    return batch.parse_rows(text, {**COMMON, **common})


def test_a_row_takes_what_it_has_and_the_rest_from_all():
    text = (
        "\ufeffbeacon,pin,pop,ssid,password,site,tags\r\n"
        "BLUFI_A1B2C3,73914826,,,,hq,a b\r\n"
        '001122,,a proof of possession,"other, net",pass word,,\r\n'
    )
    first, second = rows(text, channel="beta", pin="00000000")
    assert (first.line, first.beacon, first.secret.pin) == (2, "BLUFI_A1B2C3", "73914826")
    assert first.desired.network == desired_config.Network(b"site", b"correct horse")
    assert first.desired.config == {"site": "hq", "channel": "beta"}
    assert first.desired.tags == ("a", "b")
    assert (second.secret.pin, second.secret.pop) == (None, b"a proof of possession")
    assert second.desired.network == desired_config.Network(b"other, net", b"pass word")
    # Secrets are in no text that ends up in a log.
    assert "73914826" not in repr(first) and "correct" not in repr(first)


def test_a_row_may_say_what_somebody_takes_the_beacon_for():
    text = "beacon,pin,type\r\nBLUFI_A1B2C3,73914826,esp32c3-8mb\r\n001122,73914826,\r\n"
    first, second = rows(text)
    assert (first.desired.device_type, second.desired.device_type) == ("esp32c3-8mb", "")
    assert rows(text, type="esp32c3")[1].desired.device_type == "esp32c3"
    with pytest.raises(InputError) as caught:
        rows("beacon,pin,type\nBLUFI_A1B2C3,73914826,ESP 32\n")
    assert caught.value.code == "batch_row" and "line 2" in caught.value.message


@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        ("", "batch_columns", ""),
        ("pin\n1234\n", "batch_columns", ""),
        ("beacon,pin,colour\nA,1234,red\n", "batch_columns", ""),
        ("beacon,pin\n", "batch_empty", ""),
        ("beacon,pin\n,1234\n", "batch_row", "line 2"),
        ("beacon,pin\nABCDEF,123\n", "batch_row", "line 2"),
        ("beacon,pin\nABCDEF,\n", "batch_row", "line 2"),
        ("beacon,pin\nABCDEF,1234,5\n", "batch_row", "line 2"),
        ("beacon,pin\nABCDEF,73914826\nabcdef,73914826\n", "batch_row", "line 3"),
        ('beacon,pin\n"ABCDEF,1234\n', "batch_row", "line 1"),
        ("beacon,pin,password\nABCDEF,1234,short\n", "batch_row", "line 2"),
        ("beacon,pin,utc_off\nABCDEF,1234,soon\n", "batch_row", "line 2"),
        ("beacon,pin,ibeacon\nABCDEF,1234,here\n", "batch_row", "line 2"),
        ("beacon,pin,window\nABCDEF,1234,25:00-26:00\n", "batch_row", "line 2"),
    ],
)
def test_rows_that_are_none(text, code, line):
    with pytest.raises(InputError) as caught:
        rows(text)
    assert caught.value.code == code and line in caught.value.message


@given(st.text(max_size=300) | st.lists(st.lists(st.text(max_size=12), max_size=6), max_size=5))
def test_any_batch_file(content):
    if isinstance(content, list):
        out = io.StringIO()
        writer = csv.writer(out)
        writer.writerow(["beacon", "pin", "ssid", "password", "ibeacon"])
        writer.writerows(content)
        content = out.getvalue()
    try:
        for row in rows(content):
            assert row.beacon and row.desired.network is not None
    except BeaconOtaError as error:
        assert error.code.startswith("batch_")


@given(st.text(max_size=80))
def test_any_position_and_credentials(text):
    for read, sizes in (
        (desired_config.parse_position, (20,)),
        (desired_config.parse_credentials, range(0, 700, 20)),
    ):
        try:
            assert len(read(text)) in sizes
        except UsageError as error:
            assert error.code == "setting_value"


def test_credentials():
    pair = "646f6f72:000102030405060708090a0b0c0d0e0f"
    found = desired_config.parse_credentials(f"# the door\n\n{pair}  # its key\n")
    assert found == b"door" + bytes(range(16))
    assert len(desired_config.parse_credentials((pair + "\n") * 32)) == 32 * (
        access.ID + access.SECRET
    )
    for bad in (pair + "\n" + pair[:-1], (pair + "\n") * 33, "door:secret"):
        with pytest.raises(UsageError):
            desired_config.parse_credentials(bad)


def test_bound_credentials():
    """Of such a credential a beacon gets a key that is its own, and never the secret."""
    text = "646f6f72:" + "11" * 16 + "\n6d696e65:" + "22" * 16 + ":bound  # a phone\n"
    creds = desired_config.parse_credentials(text)
    assert creds == b"door" + b"\x11" * 16 + b"mine" + b"\x22" * 16
    assert desired_config.parse_bound_ids(text) == {b"mine"}
    given = desired_config.DesiredConfig(creds=creds, bound=desired_config.parse_bound_ids(text))
    held = {door: given.credentials_for(door) for door in ("beacon-1", "beacon-2")}
    for door, blob in held.items():
        key = hmac.digest(b"\x22" * 16, b"beacon-ota access to the door " + door.encode(), "sha256")
        assert blob == b"door" + b"\x11" * 16 + b"mine" + key[:16]
    assert held["beacon-1"] != held["beacon-2"]
    for bad in (":", ":Bound", ":bound:bound", ":no", "bound"):
        with pytest.raises(UsageError):
            desired_config.parse_credentials("6d696e65:" + "22" * 16 + bad)
    # As it was: what nobody binds is held as it is.
    assert desired_config.DesiredConfig(creds=creds).credentials_for("beacon-1") == creds


def test_a_proof_of_possession_is_for_one_beacon():
    """Two beacons with one: a stranger could pass the session on, and the wrong one is set up."""
    text = "beacon,pop\nA1B2C3,first proof\nA1B2C4,first proof\n"
    with pytest.raises(InputError) as caught:
        batch.parse_rows(text, {"ssid": "site", "password": "correct horse"})
    assert caught.value.code == "batch_row" and "line 3" in caught.value.message
    assert len(batch.parse_rows(text.replace("A1B2C4,first", "A1B2C4,other"), {})) == 2


def test_what_a_beacon_can_take_fits_what_is_wanted():
    """The longest of everything that is accepted here can be encoded there."""
    values = {
        "orch_url": "https://" + "h" * 56 + "." + "h" * 57 + ":65535",
        "site": "s" * 64,
        "window": "03:00-05:00",
        "utc_off": "-720",
        "channel": "stable",
        "fleet_key": "00" * 16,
        "ibeacon": "00112233-4455-6677-8899-aabbccddeeff:65535:65535",
    }
    second = desired_config.Network.of("x" * 32, "p" * 63)
    fields = desired_config.config_fields(values, second)
    assert len(tlv.encode(tlv.CONFIG, {**fields, "beacon_key": bytes(32)})) <= 1024
    with pytest.raises(UsageError):
        desired_config.config_fields({**values, "site": "s" * 65})


def test_labels():
    made = labels.make_label("7c:df:a1:00:11:22")
    assert (made.address, made.name) == ("7C:DF:A1:00:11:24", "BLUFI_001124")
    assert len(made.pin) == 8 and made.pin.isdigit() and len(made.pop) == 32
    assert labels.make_label("7CDFA1FFFFFF").address == "7C:DF:A1:FF:FF:01"
    assert made.pin != labels.make_label("7c:df:a1:00:11:22").pin
    for bad in ("", "7c:df:a1:00:11", "7c:df:a1:00:11:2g", "7c df a1 00 11 22"):
        with pytest.raises(UsageError):
            labels.make_label(bad)


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://127.0.0.1:8080", None),
        ("http://localhost:8080", None),
        ("http://[::1]:8080", None),
        ("", None),
        ("http://ota.example:8080/x", "http://ota.example:8080"),
        ("https://user:word@10.0.0.1", "https://10.0.0.1"),
    ],
)
def test_addresses_that_beacons_can_use(url, found):
    assert desired_config.reachable_url(url) == found


def heard(
    watch: scan.BeaconScanner,
    *,
    name: str | None = None,
    version: bytes = b"1.0.0",
    rssi: int = -50,
):
    device = BLEDevice("7C:DF:A1:00:11:24", name, None)
    data = AdvertisementData(
        local_name=name,
        manufacturer_data={0xFFFF: b"\xbe\1" + version},
        service_data={"0000ffff-0000-1000-8000-00805f9b34fb": b"\xec\1\3"} if name else {},
        service_uuids=[],
        tx_power=None,
        rssi=rssi,
        platform_data=(),
    )
    return watch.record_advertisement(device, data)


def test_what_anybody_may_say_is_no_terminal_code():
    watch = scan.BeaconScanner()
    found = heard(watch, name="BLUFI_\x1b[31m\n", version=b"1\x1b[2J")
    assert found is not None and found.name == "BLUFI_?[31m?"
    assert "\x1b" not in found.version
    assert (
        scan.BeaconScanner().record_advertisement(
            found.device, AdvertisementData("x", {}, {}, [], None, -1, ())
        )
        is None
    )


def test_what_the_monitor_tells():
    watch, changes = scan.BeaconScanner(), monitor.ChangeTracker()

    def told(after: float = 0.0) -> list[object]:
        beacons = watch.beacons()
        now = max(one.seen for one in beacons) + after
        return [one["event"] for one in changes.update(beacons, now)]

    heard(watch, name="BLUFI_001124")
    assert told() == ["found"] and told() == []
    heard(watch, name="BLUFI_001124", rssi=-53)
    assert told() == []
    heard(watch, name="BLUFI_001124", rssi=-60)
    assert told() == ["changed"]
    heard(watch, version=b"1.0.1")
    assert told() == ["changed"]
    long = monitor.GONE_AFTER_S + 1
    assert told(long) == ["gone"] and told(long) == []
    heard(watch)
    assert told()[:1] == ["found"]
    assert adverts.PROVISIONED == 1
