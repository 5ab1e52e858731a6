"""Reads and builds whole NVS partitions; their pages are :mod:`beacon_ota.images.nvs_format`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO

from beacon_ota.images import Buffer
from beacon_ota.images.nvs_format import (
    ENTRIES,
    NAMESPACES,
    NUMBER_FORMATS,
    PAGE,
    VERSION,
    EntryState,
    NvsError,
    PageState,
    PlacedItem,
    Type,
    check_key,
    entry_state,
    page_items,
    parse_header,
)


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
        info = _describe_page(number, page)
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
    return Nvs(tuple(infos), tuple(_join_entries(placed, notes)), tuple(notes))


def _describe_page(number: int, page: bytes) -> PageInfo:
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


def _join_entries(placed: list[PlacedItem], notes: list[str]) -> Iterator[Entry]:
    """Join chunks to blobs; of several values under one key the newest whole one counts."""
    names: dict[int, str] = {}
    chunks: dict[tuple[int, bytes, int], bytes] = {}
    values: dict[tuple[int, bytes], list[PlacedItem]] = {}
    for found in placed:
        item = found.item
        if item.namespace == NAMESPACES:
            if item.type == Type.U8:
                names[item.value] = _decode_key(item.key)
        elif item.type == Type.CHUNK:
            chunks[item.namespace, item.key, item.chunk] = found.payload
        else:
            values.setdefault((item.namespace, item.key), []).append(found)
    for (index, key), candidates in values.items():
        name = names.get(index)
        if name is None:
            notes.append(f"key {_decode_key(key)} lies in namespace {index}, which has no name")
            continue
        for found in reversed(candidates):
            value = _read_value(found, chunks)
            if value is not None:
                kind = "blob" if isinstance(value, bytes) else Type(found.item.type).name.lower()
                yield Entry(name, _decode_key(key), kind, value)
                break
            notes.append(f"a blob {name}/{_decode_key(key)} lacks chunks and is ignored")


def _read_value(
    found: PlacedItem, chunks: Mapping[tuple[int, bytes, int], bytes]
) -> int | str | bytes | None:
    item = found.item
    if item.type in NUMBER_FORMATS:
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


def _decode_key(key: bytes) -> str:
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
