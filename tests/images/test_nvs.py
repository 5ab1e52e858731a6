"""NVS partitions: Espressif's generator writes, our reader reads, torn values are skipped."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beacon_ota.images import nvs
from beacon_ota.images.nvs import EntryState, Item, NvsError, PageState, Type

KEYS = st.text("abcdefghijklmnopqrstuvwxyz_0123456789", min_size=1, max_size=15)
VALUES = st.one_of(
    st.integers(-(2**31), 2**31 - 1),
    st.binary(max_size=80),
    st.integers(0, 5000).map(lambda n: bytes(i * 7 & 0xFF for i in range(n))),
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(KEYS, st.dictionaries(KEYS, VALUES, max_size=8), max_size=3))
def test_what_the_generator_writes_reads_back(values):
    image = nvs.generate_partition(values, 0x20000)
    assert len(image) == 0x20000
    found = nvs.read_partition(image)
    assert {name: found.namespace(name) for name in values} == values
    assert found.notes == ()


def test_a_blob_over_several_pages():
    blob = bytes(range(256)) * 40
    values = {"beacon": {"first": 1, "big": blob, "empty": b"", "last": -1}}
    found = nvs.read_partition(nvs.generate_partition(values, 0x6000))
    assert found.namespace("beacon") == values["beacon"]
    assert [entry.type for entry in found.entries] == ["i32", "blob", "blob", "i32"]
    assert [page.state for page in found.pages[:2]] == ["full", "full"]
    assert found.pages[-1].state == "blank"


def test_the_same_settings_give_the_same_bytes():
    values = {"beacon": {"wifi_ssid": b"hall", "utc_off": 60}}
    assert nvs.generate_partition(values, 0x4000) == nvs.generate_partition(values, 0x4000)


@pytest.mark.parametrize(
    "values, size, code",
    [
        ({"beacon": {"a_key_that_is_too_long": 1}}, 0x4000, "nvs_key"),
        ({"a_namespace_too_long": {"k": 1}}, 0x4000, "nvs_key"),
        ({"beacon": {"": 1}}, 0x4000, "nvs_key"),
        ({"beacon": {"schlüssel": 1}}, 0x4000, "nvs_key"),
        ({"beacon": {"n": 2**31}}, 0x4000, "nvs_value"),
        ({"beacon": {"b": bytes(12000)}}, 0x3000, "nvs_full"),
        ({"beacon": {"n": 1}}, 0x2000, "nvs_size"),
        ({"beacon": {"n": 1}}, 0x4001, "nvs_size"),
    ],
)
def test_what_nvs_cannot_hold_is_refused(values, size, code):
    with pytest.raises(NvsError) as caught:
        nvs.generate_partition(values, size)
    assert caught.value.code == code


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 3), st.data())
def test_reading_a_damaged_partition_never_fails_unnamed(garbage, page, data):
    image = bytearray(nvs.generate_partition({"beacon": {"a": bytes(300), "b": 5}}, 0x4000))
    at = page * nvs.PAGE + data.draw(st.integers(0, nvs.PAGE - len(garbage)))
    image[at : at + len(garbage)] = garbage
    try:
        found = nvs.read_partition(image)
    except NvsError as error:
        assert error.code == "nvs_version"
        return
    for entry in found.entries:
        if entry.namespace == "beacon" and entry.key == "a" and entry.type == "blob":
            assert entry.value == bytes(300)  # a value is whole or absent


@given(
    st.integers(0, 254),
    st.binary(min_size=1, max_size=15).filter(lambda key: b"\0" not in key),
    st.integers(-(2**31), 2**31 - 1),
)
def test_an_entry_packs_and_unpacks(namespace, key, value):
    item = Item.number(namespace, key, Type.I32, value)
    raw = item.pack()
    assert len(raw) == nvs.ENTRY
    again = Item.unpack(raw)
    assert again is not None and again == item and again.value == value
    for bit in (0, 40, 100, 200):
        broken = bytearray(raw)
        broken[bit // 8] ^= 1 << bit % 8
        assert Item.unpack(broken) is None


class Partition:
    """Pages written entry by entry with the codec alone, as a writer does it."""

    def __init__(self, pages=3):
        self.data = bytearray(b"\xff" * nvs.PAGE * pages)
        self.next = 0
        self.page = -1

    def open(self, sequence):
        self.page += 1
        self.next = 0
        self.program(0, nvs.pack_header(sequence))

    def program(self, offset, data):
        at = self.page * nvs.PAGE + offset
        for i, byte in enumerate(data):
            self.data[at + i] &= byte

    def mark(self, index, state, count=1):
        for offset, word in nvs.state_words(index, state, count):
            self.program(offset, word)

    def write(self, item, payload=b"", finish=True):
        index = self.next
        self.program(nvs.FIRST + index * nvs.ENTRY, item.pack() + payload)
        self.next += item.span
        if finish:
            self.mark(index, EntryState.WRITTEN, item.span)
        return index


def test_of_two_values_the_newest_counts_and_an_erased_one_does_not():
    flash = Partition()
    flash.open(0)
    flash.write(Item.number(0, b"beacon", Type.U8, 1))
    old = flash.write(Item.number(1, b"n", Type.I32, 1))
    flash.write(Item.number(1, b"n", Type.I32, 2))
    assert nvs.read_partition(flash.data).get("beacon", "n") == 2
    flash.mark(old, EntryState.ERASED)
    assert nvs.read_partition(flash.data).get("beacon", "n") == 2
    flash.mark(old + 1, EntryState.ERASED)
    assert nvs.read_partition(flash.data).get("beacon", "n") is None


def test_a_later_page_counts_more_than_an_earlier_one_wherever_it_lies():
    flash = Partition()
    flash.open(7)
    flash.write(Item.number(1, b"n", Type.I32, 7))
    flash.open(6)
    flash.write(Item.number(0, b"beacon", Type.U8, 1))
    flash.write(Item.number(1, b"n", Type.I32, 6))
    assert nvs.read_partition(flash.data).get("beacon", "n") == 7


def test_a_blob_whose_new_chunks_are_incomplete_keeps_its_old_value():
    flash = Partition()
    flash.open(0)
    flash.write(Item.number(0, b"beacon", Type.U8, 1))
    flash.write(Item.variable(1, b"b", Type.CHUNK, b"old", 0), b"old")
    flash.write(Item.index(1, b"b", 3, 1, 0))
    new = Item.variable(1, b"b", Type.CHUNK, b"newer", 0x80)
    flash.write(new, b"newer", finish=False)
    assert nvs.read_partition(flash.data).get("beacon", "b") == b"old"
    flash.mark(flash.next - new.span, EntryState.WRITTEN, new.span)
    assert nvs.read_partition(flash.data).get("beacon", "b") == b"old"
    flash.write(Item.index(1, b"b", 5, 1, 0x80))
    assert nvs.read_partition(flash.data).get("beacon", "b") == b"newer"


def test_an_index_without_its_chunks_is_noted():
    flash = Partition()
    flash.open(0)
    flash.write(Item.number(0, b"beacon", Type.U8, 1))
    flash.write(Item.index(1, b"b", 5, 1, 0))
    found = nvs.read_partition(flash.data)
    assert found.entries == ()
    assert "lacks chunks" in found.notes[0]


def test_strings_and_old_blobs_are_read():
    flash = Partition()
    flash.open(0)
    flash.write(Item.number(0, b"beacon", Type.U8, 1))
    flash.write(Item.variable(1, b"s", Type.STR, b"hello\0"), b"hello\0")
    flash.write(Item.variable(1, b"b", Type.BLOB, b"\1\2"), b"\1\2")
    assert nvs.read_partition(flash.data).namespace("beacon") == {"s": "hello", "b": b"\1\2"}


def test_pages_that_are_not_nvs_are_called_corrupt():
    flash = Partition()
    flash.open(0)
    flash.data[nvs.PAGE : nvs.PAGE + 4] = b"\0\1\2\3"
    flash.data[-1] = 0
    found = nvs.read_partition(flash.data)
    assert [page.state for page in found.pages] == ["active", "corrupt", "corrupt"]
    assert len(found.notes) == 2


def test_a_newer_format_is_refused_as_such():
    flash = Partition()
    flash.page = 0
    flash.program(0, nvs.pack_header(0, version=0xFD))
    with pytest.raises(NvsError) as caught:
        nvs.read_partition(flash.data)
    assert caught.value.code == "nvs_version"


def test_state_words_only_clear_the_bits_meant():
    flash = Partition(1)
    flash.page = 0
    flash.mark(14, EntryState.WRITTEN, 4)
    states = [nvs.entry_state(flash.data, i) for i in range(nvs.ENTRIES)]
    assert [i for i, state in enumerate(states) if state != EntryState.EMPTY] == [14, 15, 16, 17]
    flash.mark(15, EntryState.ERASED)
    assert nvs.entry_state(flash.data, 15) == EntryState.ERASED
    assert nvs.entry_state(flash.data, 14) == EntryState.WRITTEN


def test_page_states_only_clear_bits():
    row = [PageState.BLANK, PageState.ACTIVE, PageState.FULL, PageState.FREEING, PageState.CORRUPT]
    for before, after in zip(row, row[1:], strict=False):
        assert before & after == after
