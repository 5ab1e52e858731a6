"""Batch files as spreadsheets write them."""

import re

import pytest

from beacon_ota import text_files
from beacon_ota.errors import InputError, UsageError
from beacon_ota.provision import batch, labels
from beacon_ota.provision.desired_config import Network

HEADER = "beacon,pin,ssid,password\r\n"


def parse(text, **common):
    return batch.parse_rows(text, {"orch_url": "http://orchestrator.local:8080", **common})


@pytest.mark.parametrize("sign", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_columns_as_each_country_separates_them(tmp_path, sign, encoding):
    text = (HEADER + 'BLUFI_A1B2C5,73914826,Büro,"secret, with comma; and semicolon"\r\n').replace(
        ",", sign
    )
    text = text.replace(f"secret{sign}", "secret,").replace(f"comma{sign}", "comma;")
    (tmp_path / "beacons.csv").write_bytes(text.encode(encoding))
    (row,) = parse(text_files.read_text(tmp_path / "beacons.csv"))
    assert row.beacon == "BLUFI_A1B2C5" and row.secret.pin == "73914826"
    assert row.wanted.network == Network.of("Büro", "secret, with comma; and semicolon")


@pytest.mark.parametrize(
    "pin", ["1234567", "123456", "7,39E+07", "7.39148E+07", "73914826.0", "73914826,00"]
)
def test_a_pin_that_a_spreadsheet_changed_is_not_sent(pin):
    with pytest.raises(InputError) as caught:
        parse(f'{HEADER}BLUFI_A1B2C5,"{pin}",site,correct horse\r\n')
    assert caught.value.code == "batch_row" and "line 2: pin" in caught.value.message


def test_other_columns_that_a_spreadsheet_rounds():
    for text in ("beacon,pin\n1.2E+345,73914826\n", 'beacon,pop\nA1B2C5,"1,23E+31"\n'):
        with pytest.raises(InputError) as caught:
            parse(text)
        assert caught.value.code == "batch_row"


def test_network_and_password_are_taken_to_the_letter():
    (row,) = parse(HEADER + ' A1B2C5 , 12345678 ,"skynet ","  pass with blanks  "\r\n')
    assert row.beacon == "A1B2C5" and row.secret.pin == "12345678"
    assert row.wanted.network == Network(b"skynet ", b"  pass with blanks  ")


def test_a_network_whose_name_is_no_text():
    (row,) = parse(HEADER + "A1B2C5,12345678,hex:42fc726f,correct horse\n")
    assert row.wanted.network is not None and row.wanted.network.ssid == b"B\xfcro"
    assert Network.of("B\udcfcro").ssid == b"B\xfcro"  # an argument of bytes that are no UTF-8
    for wrong in ("hex:", "hex:zz", "hex:" + "00" * 33, "", "x" * 33):
        with pytest.raises(UsageError) as caught:
            Network.of(wrong)
        assert caught.value.code == "setting_value"


def test_pins_of_labels_survive_a_spreadsheet():
    assert all(re.fullmatch(r"[1-9]\d{7}", labels.draw_pin()) for _ in range(1000))


def test_a_pin_and_a_name_that_no_label_has():
    for pin in ("1234", "", "123456789", "7391482a", "７３９１４８２６"):
        with pytest.raises(UsageError) as caught:
            labels.check_pin(pin)
        assert caught.value.code == "pin"
    for name in ("foo", "BLUFI_", "BLUFI_A1B2C", "blufi_a1b2c5", "BLUFI_A1B2C5\n"):
        with pytest.raises(UsageError) as caught:
            labels.check_name(name)
        assert caught.value.code == "ble_name"


def test_a_label_is_found_in_the_file_that_was_printed():
    head = "beacon,mac,address,name,pin,pop\n"
    one = "BLUFI_001124,7c:df:a1:00:11:22,7C:DF:A1:00:11:24,BLUFI_001124,73914826,9f86d081\n"
    two = one.replace("1124", "1125").replace("73914826", "12345678")
    assert labels.pick_label(head + one).pin == "73914826"
    assert labels.pick_label(head + one + two, "BLUFI_001125").pin == "12345678"
    for text, name, code in (
        (head + one + two, None, "label_choice"),
        (head + one, "BLUFI_001125", "label_choice"),
        (head, None, "label_file"),
        ("name\nx\n", None, "label_file"),
        ("", None, "label_file"),
        (head + one.replace("73914826", "3914826"), None, "pin"),
        (head + one.replace("BLUFI_001124", "hall"), None, "ble_name"),
    ):
        with pytest.raises((InputError, UsageError)) as caught:
            labels.pick_label(text, name)
        assert caught.value.code == code
