"""The index of a backup: bounded, field by field, and the same again when it is written."""

import json

import pytest

from beacon_ota.errors import InputError
from beacon_ota.orchestrator.backup.contents import DATABASE, BackupIndex, Entry

DIGEST = "ab" * 32
GOOD = {
    "format": 1,
    "made_at": "2030-01-02T03:04:05+00:00",
    "made_by": "0.1.0",
    "schema": "0008",
    "files": {
        DATABASE: {"bytes": 4096, "sha256": "0" * 64},
        f"blobs/{DIGEST}": {"bytes": 9, "sha256": DIGEST},
    },
    "missing": ["cd" * 32],
}


def test_it_is_the_same_again():
    index = BackupIndex.parse(json.dumps(GOOD).encode())
    assert json.loads(index.text()) == GOOD and BackupIndex.parse(index.text()) == index
    assert index.images == [DIGEST] and index.size == 4105
    assert index.files[DATABASE] == Entry(4096, "0" * 64)


FILES = GOOD["files"]


@pytest.mark.parametrize(
    "change",
    [
        {"format": None},
        {"format": "1"},
        {"format": True},
        {"made_at": 5},
        {"made_by": "x" * 65},
        {"schema": None},
        {"files": []},
        {"files": {}},
        {"files": {**FILES, "../x": FILES[DATABASE]}},
        {"files": {**FILES, f"blobs/{DIGEST}/x": FILES[DATABASE]}},
        {"files": {**FILES, f"blobs/{'0' * 63}1": FILES[DATABASE]}},
        {"files": {**FILES, "stops": FILES[DATABASE]}},
        {"files": {DATABASE: {"bytes": -1, "sha256": "0" * 64}}},
        {"files": {DATABASE: {"bytes": 1.5, "sha256": "0" * 64}}},
        {"files": {DATABASE: {"bytes": 10**30, "sha256": "0" * 64}}},
        {"files": {DATABASE: {"bytes": 1, "sha256": "x" * 64}}},
        {"files": {DATABASE: {"bytes": 1}}},
        {"files": {DATABASE: 5}},
        {"missing": None},
        {"missing": [5]},
        {"missing": ["../x"]},
    ],
)
def test_a_field_that_is_none(change):
    with pytest.raises(InputError) as caught:
        BackupIndex.parse(json.dumps({**GOOD, **change}).encode())
    assert caught.value.code == "backup_damaged"


@pytest.mark.parametrize("text", [b"", b"\xff", b"[]", b"null", b"1", b"[" * 99_999, b"{}"])
def test_what_is_no_index(text):
    with pytest.raises(InputError) as caught:
        BackupIndex.parse(text)
    assert caught.value.code == "backup_damaged"


def test_a_format_of_the_future_is_named():
    with pytest.raises(InputError) as caught:
        BackupIndex.parse(json.dumps({**GOOD, "format": 2, "files": 7}).encode())
    assert (caught.value.code, caught.value.found) == ("backup_newer", 2)
