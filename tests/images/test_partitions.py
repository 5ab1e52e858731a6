"""Partition tables against ESP-IDF's generator, and the rules each with its refusal."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beacon_ota import paths
from beacon_ota.images import partitions
from beacon_ota.images.partitions import Partition, PartitionError, Table

MICROPYTHON_OTA = """
nvs,      data, nvs,     0x9000,   0x4000,
otadata,  data, ota,     0xd000,   0x2000,
phy_init, data, phy,     0xf000,   0x1000,
ota_0,    app,  ota_0,   0x10000,  0x180000,
ota_1,    app,  ota_1,   0x190000, 0x180000,
"""


def refuse(text, code, flash_size=None):
    with pytest.raises(PartitionError) as caught:
        partitions.parse_csv(text, flash_size)
    assert caught.value.code == code, caught.value
    return caught.value


def test_bytes_are_those_of_espressifs_generator():
    binary = partitions.parse_csv(MICROPYTHON_OTA).to_bin()
    assert hashlib.md5(binary[: 5 * 32]).hexdigest() == "6f91ac1bb2b49e61a1daefd12de800a2"
    assert binary[5 * 32 :][:32] == b"\xeb\xeb" + b"\xff" * 14 + bytes.fromhex(
        "6f91ac1bb2b49e61a1daefd12de800a2"
    )
    assert len(binary) == 0xC00
    assert binary[6 * 32 :] == b"\xff" * (0xC00 - 6 * 32)
    first = bytes.fromhex("aa50 01 02 00900000 00400000") + b"nvs".ljust(16, b"\0") + bytes(4)
    assert binary[:32] == first


def test_the_projects_own_table():
    table = partitions.parse_csv(paths.data_path("partitions.csv").read_text(), 4 << 20)
    assert [part.name for part in table] == ["nvs", "otadata", "phy_init", "ota_0", "ota_1", "vfs"]
    assert table.end == 4 << 20
    assert [slot.size for slot in table.slots] == [0x1C0000, 0x1C0000]
    assert table.otadata and table.otadata.offset == 0xD000
    assert table.factory is None
    vfs = table.find_name("vfs")
    assert vfs and (vfs.type_name, vfs.subtype_name) == ("data", "littlefs")


def test_offsets_are_filled_in_and_negative_sizes_end_there():
    table = partitions.parse_csv(
        "nvs,data,nvs,,16K\nfactory,app,factory,,1M\nscratch,0x40,0x12,,4K,encrypted:readonly\n"
        "rest,data,,,-0x200000\n"
    )
    assert [(part.offset, part.size) for part in table] == [
        (0x9000, 0x4000),
        (0x10000, 0x100000),
        (0x110000, 0x1000),
        (0x111000, 0x200000 - 0x111000),
    ]
    assert table.partitions[2].encrypted and table.partitions[2].readonly
    assert table.partitions[3].subtype_name == "undefined"


@pytest.mark.parametrize(
    "text, code",
    [
        ("", "table_empty"),
        ("a,app,factory,0x10000,", "table_csv"),
        ("a,app,factory,0x10000,1.5M", "table_csv"),
        ("a,app,nonsense,0x10000,1M", "table_csv"),
        ("a,app,,0x10000,1M", "table_csv"),
        ("a,weird,0,0x10000,1M", "table_csv"),
        ("a,data,nvs,0x9000,0x4000,shiny", "table_csv"),
        ("a,0x20,0,0x10000,1M", "table_type"),
        ("a,app,factory,0x18000,1M", "table_align"),
        ("a,app,factory,0x10000,0x1001", "table_align"),
        ("a,data,fat,0x9800,0x1000", "table_align"),
        ("a,data,fat,0x8000,0x1000", "table_overlap"),
        ("a,data,fat,0x9000,0x2000\nb,data,fat,0xA000,0x1000", "table_overlap"),
        ("a,data,fat,0x9000,0x1000\na,data,fat,0xA000,0x1000", "table_name"),
        ("a_name_of_17_char,data,fat,0x9000,0x1000", "table_name"),
        (",data,fat,0x9000,0x1000", "table_name"),
        ("a,data,ota,0x9000,0x1000", "table_otadata"),
        ("a,data,ota,0x9000,0x2000\nb,data,ota,0xB000,0x2000", "table_otadata"),
        ("a,data,ota,0x9000,0x2000,readonly", "table_readonly"),
        ("a,data,nvs,0x9000,0x2000", "table_nvs"),
        ("a,app,ota_1,0x10000,1M", "table_slots"),
        ("a,app,ota_0,0x10000,1M\nb,app,ota_0,0x110000,1M", "table_slots"),
        ("a,app,ota_0,0x10000,8M", "table_flash"),
        ("a,data,fat,0x9000,-0x1000", "table_type"),
        ("a,data,fat,0x9000,0x1FFFFFFFF", "table_type"),
        ("\n".join(f"p{i},data,fat,,4K" for i in range(95)), "table_rows"),
    ],
)
def test_rules(text, code):
    refuse(text, code, 4 << 20)


def test_a_csv_error_names_its_line():
    error = refuse("nvs,data,nvs,0x9000,0x4000\n\nvfs,data,nothing,,4K", "table_csv")
    assert error.message.startswith("line 3")


def test_a_small_read_only_nvs_is_fine():
    assert len(partitions.parse_csv("a,data,nvs,0x9000,0x1000,readonly")) == 1


@pytest.mark.parametrize(
    "change, code",
    [
        (lambda b: b"\xe9" + b[1:], "table_magic"),
        (lambda b: b"\xff" * len(b), "table_magic"),
        (lambda b: b"", "table_magic"),
        (lambda b: b[:4] + b"\0\x10" + b[6:], "table_md5"),
        (lambda b: b[:160] + b"\xff" * 32 + b[192:], "table_md5"),
        (lambda b: b[:160], "table_end"),
        (lambda b: b[:192] + b[:32] + b[224:], "table_end"),
        (lambda b: b[:12] + b"\xc3\x28\0" + b[15:], "table_md5"),
    ],
)
def test_damaged_binaries(change, code):
    binary = partitions.parse_csv(MICROPYTHON_OTA).to_bin()
    with pytest.raises(PartitionError) as caught:
        partitions.parse_bin(change(binary))
    assert caught.value.code == code


def test_a_name_that_is_no_text():
    row = bytearray(partitions.parse_csv(MICROPYTHON_OTA).partitions[0].pack())
    row[12:15] = b"\xc3\x28\0"
    data = bytes(row) + partitions.MD5_MARK + hashlib.md5(row).digest() + b"\xff" * 32
    with pytest.raises(PartitionError) as caught:
        partitions.parse_bin(data)
    assert caught.value.code == "table_name"


def test_a_binary_table_is_found_within_a_flash_image():
    flash = b"\xff" * 0x8000 + partitions.parse_csv(MICROPYTHON_OTA).to_bin()
    assert partitions.is_table(flash, partitions.TABLE_OFFSET)
    assert not partitions.is_table(flash)
    assert len(partitions.parse_bin(flash, offset=partitions.TABLE_OFFSET)) == 5


NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789_-.", min_size=1, max_size=16)


@st.composite
def tables(draw):
    """Tables that keep the rules: data and app rows with gaps between them."""
    names = draw(st.lists(NAMES, min_size=1, max_size=12, unique=True))
    parts, end, slot = [], 0x9000, 0
    for name in names:
        kind = draw(st.sampled_from(["slot", "fat", "nvs", "custom"]))
        readonly, encrypted = draw(st.booleans()), draw(st.booleans())
        align = 0x10000 if kind == "slot" else 0x1000
        offset = -(-end // align) * align + align * draw(st.integers(0, 3))
        size = 0x1000 * draw(st.integers(3, 40))
        if kind == "slot" and slot < 16:
            parts.append(Partition(name, 0, 0x10 + slot, offset, size, encrypted, readonly))
            slot += 1
        elif kind == "custom":
            row = draw(st.integers(0x40, 0xFE)), draw(st.integers(0, 0xFE))
            parts.append(Partition(name, *row, offset, size + 1, encrypted, readonly))
        else:
            subtype = 2 if kind == "nvs" else 0x81
            parts.append(Partition(name, 1, subtype, offset, size, encrypted, readonly))
        end = -(-parts[-1].end // 0x1000) * 0x1000
    return Table(tuple(parts))


@settings(max_examples=100, deadline=None)
@given(tables())
def test_csv_and_binary_round_trips(table):
    assert partitions.parse_bin(table.to_bin()) == table
    assert partitions.parse_csv(table.to_csv()) == table


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200) | st.lists(st.text("aeh,0x19MK-#:\n ", max_size=40)).map("\n".join))
def test_arbitrary_text_is_refused_by_name(text):
    try:
        partitions.parse_csv(text, 4 << 20)
    except PartitionError as error:
        assert error.code.startswith("table_")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_arbitrary_rows_are_refused_by_name(data):
    rows = data.draw(st.lists(st.binary(min_size=30, max_size=30).map(lambda b: b"\xaa\x50" + b)))
    body = b"".join(rows)
    body += partitions.MD5_MARK + hashlib.md5(body).digest()
    try:
        partitions.parse_bin(body.ljust(0xC00, b"\xff"))
    except PartitionError as error:
        assert error.code.startswith("table_")
