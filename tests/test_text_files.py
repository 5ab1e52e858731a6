"""Text files as Notepad, spreadsheets and other editors write them."""

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import beacon_ota
from beacon_ota import text_files
from beacon_ota.errors import BeaconOtaError, InputError, UsageError

TEXT = "Büro: ключ ✓\r\nsecond"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, encoding):
    (tmp_path / "file").write_bytes(TEXT.encode(encoding))
    assert text_files.read_text(tmp_path / "file") == TEXT
    assert text_files.read_line(tmp_path / "file") == "Büro: ключ ✓"


@pytest.mark.parametrize(
    "data, found",
    [
        (TEXT.encode("utf-16"), "UTF-16"),
        ("password\r\n".encode("utf-16-le"), "UTF-16"),
        ("password\r\n".encode("utf-16-be"), "UTF-16"),
        (TEXT.encode("utf-32"), "UTF-32"),
        ("line\nBüro".encode("cp1252"), "the byte 0xfc in line 2"),
        (b"line\nwith \0", "a NUL character in line 2"),
    ],
)
def test_another_encoding_is_refused_by_its_name(tmp_path, data, found):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(InputError) as caught:
        text_files.read_text(tmp_path / "file")
    assert (caught.value.code, caught.value.found) == ("file_encoding", found)


def test_a_file_that_is_not_there_or_too_large(tmp_path):
    with pytest.raises(UsageError) as caught:
        text_files.read_text(tmp_path / "file")
    assert caught.value.code == "file_missing"
    (tmp_path / "file").write_bytes(b"x" * 11)
    with pytest.raises(InputError) as caught:
        text_files.read_text(tmp_path / "file", 10)
    assert caught.value.code == "file_too_large"


@given(st.binary(max_size=200))
def test_any_bytes_are_text_or_a_named_error_prop(data):
    try:
        found = text_files.decode_text(data, "file")
    except BeaconOtaError as error:
        assert error.code == "file_encoding" and error.found
    else:
        assert found.encode() == data.removeprefix(b"\xef\xbb\xbf")
        assert "\0" not in found


# Files that this program itself, or the system, has written.
OWN = {
    "campaign/rig/builds.py",
    "campaign/power/recording.py",
    "campaign/runner.py",
    "campaign/kills/server_process.py",
    "campaign/soak.py",
    "orchestrator/api/docs.py",
    "orchestrator/server/subprocess.py",
    "orchestrator/core/replay.py",
    "swarm/scenario.py",
}


def test_every_text_from_a_person_is_read_by_one_function():
    root = Path(beacon_ota.__file__).parent
    others = set()
    for file in root.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "read_text"
            ):
                others.add(file.relative_to(root).as_posix())
    assert others <= OWN
