"""The boards: their layouts in numbers, and layouts that cannot be updated."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beacon_ota.errors import BeaconOtaError
from beacon_ota.images import boards, otadata

STOCK_CORE = 1_659_184  # bytes of MicroPython 1.27.0 for the C3

LAYOUTS = {
    "esp32c3": [
        ("nvs", 0x9000, 0x4000),
        ("otadata", 0xD000, 0x2000),
        ("phy_init", 0xF000, 0x1000),
        ("ota_0", 0x10000, 0x1C0000),
        ("ota_1", 0x1D0000, 0x1C0000),
        ("vfs", 0x390000, 0x70000),
    ],
    "esp32c3-8mb": [
        ("nvs", 0x9000, 0x6000),
        ("phy_init", 0xF000, 0x1000),
        ("factory", 0x10000, 2 << 20),
        ("ota_0", 0x210000, 2 << 20),
        ("ota_1", 0x410000, 2 << 20),
        ("otadata", 0x610000, 0x2000),
        ("vfs", 0x612000, 0x1EE000),
    ],
    "esp32c3-1m": [
        ("nvs", 0x9000, 0x6000),
        ("phy_init", 0xF000, 0x1000),
        ("factory", 0x10000, 1 << 20),
        ("ota_0", 0x110000, 1 << 20),
        ("ota_1", 0x210000, 1 << 20),
        ("otadata", 0x310000, 0x2000),
        ("vfs", 0x312000, 0xEE000),
    ],
}


def test_the_boards_there_are():
    assert set(boards.board_names()) == set(LAYOUTS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name):
    board = boards.load_board(name)
    assert [(part.name, part.offset, part.size) for part in board.table] == LAYOUTS[name]
    assert board.device_type == name
    assert board.table.end == board.flash_size  # nothing wasted
    assert boards.board_for_device_type(name) == board


def test_room_for_an_app_behind_the_stock_core():
    board = boards.load_board("esp32c3")
    board.check_fit(STOCK_CORE)
    assert board.slot_size - STOCK_CORE == 175_824
    boards.load_board("esp32c3-8mb").check_fit(2 << 20)


def test_a_stock_core_is_refused_on_small_slots_with_the_numbers():
    with pytest.raises(boards.BoardError) as caught:
        boards.load_board("esp32c3-1m").check_fit(STOCK_CORE, "the core")
    error = caught.value
    assert (error.code, error.found, error.expected) == ("slot_too_small", STOCK_CORE, 1 << 20)
    assert "esp32c3-1m" in error.message and "1,659,184" in error.message


def test_unknown_boards():
    for name in ("esp32", "../boards", "nowhere/esp32c3", ""):
        with pytest.raises(BeaconOtaError) as caught:
            boards.load_board(name)
        assert caught.value.code == "board_unknown"
    with pytest.raises(BeaconOtaError) as caught:
        boards.board_for_device_type("esp32")
    assert caught.value.code == "device_type_unknown"


GOOD = {
    "name": "mine",
    "description": "a board",
    "chip": "esp32c3",
    "flash": "2M",
    "partitions": "p.csv",
}
ROWS = {
    "nvs": "nvs,data,nvs,0x9000,0x4000",
    "otadata": "otadata,data,ota,0xD000,0x2000",
    "ota_0": "ota_0,app,ota_0,0x10000,0xC0000",
    "ota_1": "ota_1,app,ota_1,0xD0000,0xC0000",
    "vfs": "vfs,data,littlefs,0x190000,0x70000",
}


def make(folder, without=(), rows=ROWS, **fields):
    folder.mkdir(parents=True, exist_ok=True)
    toml = {key: value for key, value in {**GOOD, **fields}.items() if key not in without}
    (folder / "board.toml").write_text("".join(f"{k} = {v!r}\n" for k, v in toml.items()))
    (folder / "p.csv").write_text("\n".join(v for k, v in rows.items() if k not in without))
    return folder


def test_a_board_of_ones_own(tmp_path, monkeypatch):
    make(tmp_path / "mine")
    assert boards.load_board(tmp_path / "mine").slot_size == 0xC0000
    monkeypatch.setenv(boards.FOLDERS, str(tmp_path))
    assert "mine" in boards.board_names()
    assert boards.board_for_device_type("mine").flash_size == 2 << 20


@pytest.mark.parametrize(
    "change, code",
    [
        ({"chip": "esp32"}, "board_file"),
        ({"name": "other"}, "board_file"),
        ({"colour": "red"}, "board_file"),
        ({"flash": 4}, "board_file"),
        ({"partitions": "none.csv"}, "board_file"),
        ({"flash": "1M"}, "table_flash"),
        ({"without": ("description",)}, "board_file"),
        ({"without": ("vfs",)}, "table_ota"),
        ({"without": ("nvs",)}, "table_ota"),
        ({"without": ("otadata",)}, "table_ota"),
        ({"without": ("ota_1",)}, "table_ota"),
        ({"rows": {**ROWS, "vfs": "vfs,app,factory,0x190000,0x70000"}}, "table_ota"),
    ],
)
def test_boards_that_are_refused(tmp_path, change, code):
    with pytest.raises(BeaconOtaError) as caught:
        boards.load_board(make(tmp_path / "mine", **change))
    assert caught.value.code == code


@pytest.mark.parametrize("seq, crc", [(1, 0x4743989A), (2, 0x55F63774), (3, 0xED4A5011)])
def test_otadata_numbers_have_espressifs_crc(seq, crc):
    assert otadata.sequence_crc(seq) == crc


def test_an_otadata_entry_in_bytes():
    entry = otadata.make_entry(1, otadata.VALID)
    assert entry.pack().hex() == "01000000" + "ff" * 20 + "020000009a984347"
    assert str(entry) == "1/valid" and entry.good and entry.slot(2) == 0


@given(st.integers(0, 2**32 - 1), st.sampled_from([*otadata.STATES, 77]), st.binary(max_size=20))
def test_otadata_round_trip(seq, state, label):
    entry = otadata.Entry(seq, label.ljust(20, b"\xff"), state, otadata.sequence_crc(seq))
    assert otadata.parse_entries(otadata.build_partition(entry)) == (entry, otadata.Entry())
    assert otadata.parse_entries(otadata.build_partition(None, entry)) == (otadata.Entry(), entry)
    rejected = seq == otadata.BLANK or state in (otadata.INVALID, otadata.ABORTED)
    assert entry.good == (not rejected)
    assert otadata.active_entry((entry, otadata.Entry())) == (-1 if rejected else 0)
