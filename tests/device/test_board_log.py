"""The CSV of a batch: what is in it is on the disk, and one process writes it."""

import csv
import os
import stat

import pytest

from beacon_ota.device import board_log
from beacon_ota.device.board_log import BEGUN, FLASHED, BoardRow, open_log
from beacon_ota.errors import BeaconOtaError
from beacon_ota.provision import batch, labels

MAC, OTHER = "7c:df:a1:00:11:22", "7c:df:a1:00:11:33"


def rows(file) -> list[dict[str, str]]:
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def refuse(function, code):
    with pytest.raises(BeaconOtaError) as caught:
        function()
    assert caught.value.code == code, caught.value
    return caught.value


def enter(file):
    with open_log(file):
        pass


def test_a_row_is_on_the_disk_at_once_and_stays(tmp_path):
    file = tmp_path / "labels.csv"
    with open_log(file) as log:
        row = log.find_or_label(MAC)
        log.save(row)
        assert [(one["mac"], one["pin"], one["result"]) for one in rows(file)] == [
            (MAC, row.label.pin, BEGUN)
        ]
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        row.result, row.detail = "chip_write", "=1+1"
        log.save(row)
        log.save(BoardRow(labels.make_label(OTHER), FLASHED, "1.0.0", "2030-01-31T10:00:00Z"))
    with open_log(file) as log:
        assert log.find_or_label(MAC).label == row.label
        assert log.rows[MAC].result == "chip_write" and log.rows[OTHER].version == "1.0.0"
        log.save(log.rows[OTHER])
    assert [one["detail"] for one in rows(file)] == ["'=1+1", ""]


def test_it_is_a_file_of_labels(tmp_path):
    file = tmp_path / "labels.csv"
    with open_log(file) as log:
        log.save(log.find_or_label(MAC))
    text = file.read_text()
    assert labels.pick_label(text) == log.rows[MAC].label
    [row] = batch.parse_rows(text, {"ssid": "site", "password": "correct horse"})
    assert (row.beacon, row.secret.pin) == (log.rows[MAC].label.name, log.rows[MAC].label.pin)


def test_labels_of_provision_label_are_taken(tmp_path):
    file, label = tmp_path / "labels.csv", labels.make_label(MAC)
    fields = label.as_dict()
    file.write_text(",".join(fields) + "\n" + ",".join(map(str, fields.values())) + "\n")
    with open_log(file) as log:
        assert log.find_or_label(MAC) == BoardRow(label)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a,b\n1,2\n", "label_file"),
        ("mac,pin\n7c:df:a1:00:11,12345678\n", "label_file"),
        ("mac,pin\n7c:df:a1:00:11:22,1234567\n", "label_file"),
        ('mac,pin\n"7c:df', "label_file"),
    ],
)
def test_another_file_is_left_alone(tmp_path, text, code):
    file = tmp_path / "labels.csv"
    file.write_text(text)
    refuse(lambda: enter(file), code)
    assert file.read_text() == text
    file.write_bytes(text.encode("utf-16"))
    refuse(lambda: enter(file), "file_encoding")
    refuse(lambda: enter(tmp_path / "none" / "labels.csv"), "file_unwritable")


def test_one_batch_at_a_time(tmp_path):
    """Also after the file was replaced, which every change does; and by way of a link."""
    file = tmp_path / "labels.csv"
    with open_log(file) as log:
        refuse(lambda: enter(file), "labels_in_use")
        log.save(log.find_or_label(MAC))
        refuse(lambda: enter(file), "labels_in_use")
    with open_log(file) as log:
        assert list(log.rows) == [MAC]


def test_a_disk_that_takes_nothing_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "labels.csv"
    with open_log(file) as log:
        log.save(log.find_or_label(MAC))
        before = file.read_bytes()

        def full(*_):
            raise OSError(28, os.strerror(28))

        monkeypatch.setattr(board_log.os, "fsync", full)
        refuse(lambda: log.save(log.find_or_label(OTHER)), "file_unwritable")
        assert file.read_bytes() == before and os.listdir(tmp_path) == ["labels.csv"]
        refuse(lambda: enter(file), "labels_in_use")
