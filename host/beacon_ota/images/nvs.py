"""NVS partitions in ESP-IDF's page format (version 2): codec, reader, generator.

A partition is a row of 4 KiB pages. A page is a 32-byte header (state, sequence number,
version, CRC), a 32-byte bitmap with two bits per entry, and 126 entries of 32 bytes. States
only ever clear bits, so each change of state is one program operation on NOR flash.

An item is one entry, or one entry and the data entries that follow it (``span`` counts both).
A blob is an index entry and chunks of at most 4000 bytes; the index names the version
(0 or 0x80) that its chunks carry, so that an old and a new value can lie side by side while
one replaces the other.

The codec (:class:`Item`, :func:`pack_header`, :func:`parse_header`, :func:`entry_state`,
:func:`crc32`) is what a writer needs as well. Source: ESP-IDF ``components/nvs_flash``, v5.x.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from io import BytesIO

from beacon_ota.errors import InputError
from beacon_ota.images import Buffer

PAGE = 4096
ENTRY = 32
ENTRIES = 126
BITMAP = 32  # offset of the entry state bitmap in a page
FIRST = 64  # offset of entry 0 in a page
CHUNK_MAX = ENTRY * (ENTRIES - 1)  # bytes of one chunk or string: 4000
KEY_MAX = 15  # characters of a key or a namespace name
VERSION = 0xFE  # format 2: blobs over several pages
CHUNK_ANY = 0xFF  # chunk index of everything that is not a chunk
BLANK = 0xFFFFFFFF
NAMESPACES = 0  # namespace index under which the namespaces' own names lie

_HEADER = struct.Struct("<IIB19sI")
_ITEM = struct.Struct("<BBBBI16s8s")
_VARIABLE = struct.Struct("<HHI")  # size, reserved, CRC of the data
_INDEX = struct.Struct("<IBBH")  # size, chunk count, first chunk, reserved


class NvsError(InputError):
    """An NVS partition, or what should go into one, is not acceptable."""


class PageState(IntEnum):
    """State word of a page."""

    BLANK = 0xFFFFFFFF
    ACTIVE = 0xFFFFFFFE
    FULL = 0xFFFFFFFC
    FREEING = 0xFFFFFFF8
    CORRUPT = 0xFFFFFFF0


class EntryState(IntEnum):
    """Two bits of the bitmap."""

    EMPTY = 3
    WRITTEN = 2
    ERASED = 0
    ILLEGAL = 1


class Type(IntEnum):
    """Type byte of an item."""

    U8 = 0x01
    U16 = 0x02
    U32 = 0x04
    U64 = 0x08
    I8 = 0x11
    I16 = 0x12
    I32 = 0x14
    I64 = 0x18
    STR = 0x21
    BLOB = 0x41  # format 1: a blob within one page
    CHUNK = 0x42
    INDEX = 0x48


_NUMBERS = {
    Type.U8: "<B",
    Type.U16: "<H",
    Type.U32: "<I",
    Type.U64: "<Q",
    Type.I8: "<b",
    Type.I16: "<h",
    Type.I32: "<i",
    Type.I64: "<q",
}
_VARIABLE_TYPES = (Type.STR, Type.BLOB, Type.CHUNK)


def crc32(data: bytes, start: int = 0xFFFFFFFF) -> int:
    """Return ESP-IDF's CRC-32 of ``data``: zlib's, entered with 0xFFFFFFFF."""
    return zlib.crc32(data, start) & 0xFFFFFFFF


def pack_header(sequence: int, state: int = PageState.ACTIVE, version: int = VERSION) -> bytes:
    """Return the 32 header bytes of a page."""
    head = _HEADER.pack(state, sequence, version, b"\xff" * 19, 0)
    return head[:28] + struct.pack("<I", crc32(head[4:28]))


@dataclass(frozen=True)
class Header:
    """A page's header as read; ``ok`` tells whether its CRC is right."""

    state: int
    sequence: int
    version: int
    ok: bool


def parse_header(page: Buffer) -> Header:
    """Read the header of ``page`` (at least 32 bytes)."""
    state, sequence, version, _, stored = _HEADER.unpack_from(page)
    return Header(state, sequence, version, stored == crc32(bytes(page[4:28])))


def entry_state(page: Buffer, index: int) -> EntryState:
    """Return the state of entry ``index`` (0–125) of ``page`` (at least 64 bytes)."""
    return EntryState(page[BITMAP + index // 4] >> index % 4 * 2 & 3)


def state_words(index: int, state: int, count: int = 1) -> Iterator[tuple[int, bytes]]:
    """Yield (offset in the page, 4 bytes to program) that move entries to ``state``.

    NVS programs its bitmap in aligned 32-bit words; every bit not to be cleared is 1.
    """
    end = index + count
    while index < end:
        word = index // 16
        value = BLANK
        while index < end and index // 16 == word:
            value &= ~((~state & 3) << index % 16 * 2) & BLANK
            index += 1
        yield BITMAP + word * 4, struct.pack("<I", value)


def entry_span(size: int) -> int:
    """Return how many entries an item with ``size`` bytes of variable data takes."""
    return 1 + (size + ENTRY - 1) // ENTRY


@dataclass(frozen=True)
class Item:
    """One entry: the head of an item.

    Args:
        namespace: index of the namespace, 0 for the list of namespaces.
        type: a :class:`Type`.
        span: entries of the item, this one included.
        chunk: index of a chunk (0–254), else ``CHUNK_ANY``.
        key: at most 15 bytes.
        data: 8 bytes, padded with FF: the number, or the variable data's size and CRC.
    """

    namespace: int
    type: int
    span: int
    chunk: int
    key: bytes
    data: bytes

    @classmethod
    def number(cls, namespace: int, key: bytes, type: Type, value: int) -> "Item":
        """Return the item of an integer."""
        data = struct.pack(_NUMBERS[type], value)
        return cls(namespace, type, 1, CHUNK_ANY, key, data.ljust(8, b"\xff"))

    @classmethod
    def variable(
        cls, namespace: int, key: bytes, type: Type, payload: bytes, chunk: int = CHUNK_ANY
    ) -> "Item":
        """Return the head of a string, a chunk or a format-1 blob."""
        data = _VARIABLE.pack(len(payload), 0xFFFF, crc32(payload))
        return cls(namespace, type, entry_span(len(payload)), chunk, key, data)

    @classmethod
    def index(cls, namespace: int, key: bytes, size: int, chunks: int, first: int) -> "Item":
        """Return a blob's index entry; ``first`` is 0 or 0x80."""
        data = _INDEX.pack(size, chunks, first, 0xFFFF)
        return cls(namespace, Type.INDEX, 1, CHUNK_ANY, key, data)

    def pack(self) -> bytes:
        """Return the 32 bytes of the entry."""
        head = struct.pack("<BBBB", self.namespace, self.type, self.span, self.chunk)
        tail = struct.pack("<16s8s", self.key, self.data)
        return head + struct.pack("<I", crc32(tail, zlib.crc32(head, 0xFFFFFFFF))) + tail

    @classmethod
    def unpack(cls, raw: Buffer, room: int = ENTRIES) -> "Item | None":
        """Read an entry; None when its CRC, type or span is wrong.

        Args:
            raw: 32 bytes.
            room: entries from this one to the end of the page.
        """
        raw = bytes(raw)
        namespace, type, span, chunk, stored, key, data = _ITEM.unpack(raw)
        if stored != crc32(raw[8:], zlib.crc32(raw[:4], 0xFFFFFFFF)):
            return None
        item = cls(namespace, type, span, chunk, key.split(b"\0")[0], data)
        if type in _NUMBERS or type == Type.INDEX:
            return item if span == 1 else None
        if type in _VARIABLE_TYPES:
            return item if span == entry_span(item.size) and span <= room else None
        return None

    @property
    def value(self) -> int:
        """The integer of a number item."""
        form = _NUMBERS[Type(self.type)]
        return struct.unpack_from(form, self.data)[0]

    @property
    def size(self) -> int:
        """Bytes of the variable data, or of the whole blob for an index."""
        form = "<I" if self.type == Type.INDEX else "<H"
        return struct.unpack_from(form, self.data)[0]

    @property
    def data_crc(self) -> int:
        """CRC of the variable data."""
        return _VARIABLE.unpack(self.data)[2]

    @property
    def chunks(self) -> tuple[int, int]:
        """How many chunks an index names, and the first of their indices."""
        _, count, first, _ = _INDEX.unpack(self.data)
        return count, first


@dataclass(frozen=True)
class PlacedItem:
    """An item of a page, with its variable data (empty for numbers and indices)."""

    index: int
    item: Item
    payload: bytes


def page_items(page: Buffer) -> Iterator[PlacedItem]:
    """Yield the valid items of one page, in the order they were written.

    An item counts when all its entries are marked written and both its CRCs are right:
    what a power cut left half written is skipped, as ESP-IDF skips it.
    """
    index = 0
    while index < ENTRIES:
        step = 1
        if entry_state(page, index) == EntryState.WRITTEN:
            at = FIRST + index * ENTRY
            item = Item.unpack(page[at : at + ENTRY], ENTRIES - index)
            if item is not None and _written(page, index, item.span):
                step = item.span
                payload = b""
                if item.type in _VARIABLE_TYPES:
                    payload = bytes(page[at + ENTRY : at + ENTRY + item.size])
                    if crc32(payload) == item.data_crc:
                        yield PlacedItem(index, item, payload)
                else:
                    yield PlacedItem(index, item, payload)
        index += step


def _written(page: Buffer, index: int, span: int) -> bool:
    return all(entry_state(page, i) == EntryState.WRITTEN for i in range(index, index + span))


@dataclass(frozen=True)
class PageInfo:
    """What a page is and how full: entries written, erased and empty."""

    number: int
    state: str
    sequence: int | None
    written: int
    erased: int
    empty: int


@dataclass(frozen=True)
class Entry:
    """A value: int for the integer types, str for strings, bytes for blobs."""

    namespace: str
    key: str
    type: str
    value: int | str | bytes


@dataclass(frozen=True)
class Nvs:
    """A partition's content.

    ``notes`` are sentences about what was found broken and skipped.
    """

    pages: tuple[PageInfo, ...]
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]

    def get(self, namespace: str, key: str) -> int | str | bytes | None:
        """Return a value, or None when there is none."""
        for entry in self.entries:
            if (entry.namespace, entry.key) == (namespace, key):
                return entry.value
        return None

    def namespace(self, name: str) -> dict[str, int | str | bytes]:
        """Return the keys and values of one namespace."""
        return {entry.key: entry.value for entry in self.entries if entry.namespace == name}


def read_partition(data: Buffer) -> Nvs:
    """Read an NVS partition as a beacon would find it after start-up.

    Raises:
        NvsError: ``nvs_size`` (no whole pages), ``nvs_version`` (format newer than 2).
    """
    if not data or len(data) % PAGE:
        raise NvsError(
            "nvs_size",
            "an NVS partition is a whole number of 4096-byte pages",
            found=len(data),
            expected="a multiple of 4096",
        )
    infos, notes, alive = [], [], []
    for number in range(len(data) // PAGE):
        page = bytes(data[number * PAGE : (number + 1) * PAGE])
        info = _page_info(number, page)
        infos.append(info)
        if info.state == "corrupt":
            notes.append(f"page {number} is corrupt and is ignored")
        elif info.sequence is not None:
            if page[8] < VERSION:
                raise NvsError(
                    "nvs_version",
                    f"page {number} is of a newer NVS format",
                    found=page[8],
                    expected=VERSION,
                )
            alive.append((info.sequence, page))
    alive.sort(key=lambda pair: pair[0])
    placed = [found for _, page in alive for found in page_items(page)]
    return Nvs(tuple(infos), tuple(_entries(placed, notes)), tuple(notes))


def _page_info(number: int, page: bytes) -> PageInfo:
    header = parse_header(page)
    if header.state == PageState.BLANK:
        state = "blank" if page.count(0xFF) == PAGE else "corrupt"
        return PageInfo(number, state, None, 0, 0, ENTRIES)
    known = (PageState.ACTIVE, PageState.FULL, PageState.FREEING)
    if not header.ok or header.state not in known:
        return PageInfo(number, "corrupt", None, 0, 0, 0)
    states = [entry_state(page, index) for index in range(ENTRIES)]
    return PageInfo(
        number,
        PageState(header.state).name.lower(),
        header.sequence,
        states.count(EntryState.WRITTEN),
        states.count(EntryState.ERASED),
        states.count(EntryState.EMPTY),
    )


def _entries(placed: list[PlacedItem], notes: list[str]) -> Iterator[Entry]:
    """Join chunks to blobs; of several values under one key the newest whole one counts."""
    names: dict[int, str] = {}
    chunks: dict[tuple[int, bytes, int], bytes] = {}
    values: dict[tuple[int, bytes], list[PlacedItem]] = {}
    for found in placed:
        item = found.item
        if item.namespace == NAMESPACES:
            if item.type == Type.U8:
                names[item.value] = _text(item.key)
        elif item.type == Type.CHUNK:
            chunks[item.namespace, item.key, item.chunk] = found.payload
        else:
            values.setdefault((item.namespace, item.key), []).append(found)
    for (index, key), candidates in values.items():
        name = names.get(index)
        if name is None:
            notes.append(f"key {_text(key)} lies in namespace {index}, which has no name")
            continue
        for found in reversed(candidates):
            value = _value(found, chunks)
            if value is not None:
                kind = "blob" if isinstance(value, bytes) else Type(found.item.type).name.lower()
                yield Entry(name, _text(key), kind, value)
                break
            notes.append(f"a blob {name}/{_text(key)} lacks chunks and is ignored")


def _value(
    found: PlacedItem, chunks: Mapping[tuple[int, bytes, int], bytes]
) -> int | str | bytes | None:
    item = found.item
    if item.type in _NUMBERS:
        return item.value
    if item.type == Type.STR:
        return found.payload.rstrip(b"\0").decode("utf-8", "replace")
    if item.type == Type.BLOB:
        return found.payload
    count, first = item.chunks
    parts = [chunks.get((item.namespace, item.key, first + i)) for i in range(count)]
    if None in parts:
        return None
    whole = b"".join(part for part in parts if part is not None)
    return whole if len(whole) == item.size else None


def _text(key: bytes) -> str:
    return key.decode("ascii", "replace")


def generate_partition(values: Mapping[str, Mapping[str, int | bytes]], size: int) -> bytes:
    """Return an NVS partition of ``size`` bytes, written by Espressif's own generator.

    Args:
        values: namespace → key → value; int becomes i32, bytes a blob.
        size: bytes of the partition, a multiple of 4096, at least 0x3000.

    Raises:
        NvsError: ``nvs_size``, ``nvs_key`` (name too long, empty or not ASCII),
            ``nvs_value`` (not an i32), ``nvs_full`` (does not fit).
    """
    if size % PAGE or size < 3 * PAGE:
        raise NvsError(
            "nvs_size",
            "an NVS partition that is written to has three pages of 4096 bytes or more",
            found=size,
            expected="a multiple of 4096, at least 12288",
        )
    for namespace, keys in values.items():
        for name in (namespace, *keys):
            check_key(name)
        for key, value in keys.items():
            if isinstance(value, int) and not -(1 << 31) <= value < 1 << 31:
                raise NvsError("nvs_value", f"{key} is not a 32-bit integer", found=value)

    from esp_idf_nvs_partition_gen import nvs_partition_gen as gen

    out = BytesIO()
    try:
        # The generator adds the page that NVS keeps in reserve by itself.
        with gen.nvs_open(out, size - PAGE, gen.Page.VERSION2) as nvs:
            for namespace, keys in values.items():
                nvs.write_namespace(namespace)
                for key, value in keys.items():
                    if isinstance(value, int):
                        nvs.write_entry(key, value, "i32")
                    else:
                        nvs.write_entry(key, bytes(value).hex(), "hex2bin")
    except gen.InsufficientSizeError as error:
        raise NvsError(
            "nvs_full",
            f"the settings do not fit into an NVS partition of {size} bytes",
            expected=f"{size - PAGE} bytes at most, overhead included",
        ) from error
    return out.getvalue()


def check_key(name: str) -> None:
    """Refuse a key or namespace name that NVS cannot hold (``nvs_key``)."""
    if not name or len(name) > KEY_MAX or not name.isascii() or not name.isprintable():
        raise NvsError(
            "nvs_key",
            "NVS names are 1 to 15 printable ASCII characters",
            found=name,
        )
