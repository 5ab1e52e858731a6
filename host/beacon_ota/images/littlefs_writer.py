"""LittleFS images built by littlefs itself: the same files give the same bytes."""

from collections.abc import Mapping

from beacon_ota.images.littlefs import VERSION, LittlefsError, stored_geometry

NAME_MAX = 255
# What MicroPython mounts with: a file inlined for a larger cache could not be read there.
_READ, _PROGRAM, _CACHE, _LOOKAHEAD = 32, 32, 128, 32


def build_filesystem(
    files: Mapping[str, bytes], block_size: int, block_count: int | None = None
) -> bytes:
    """Return an image that holds ``files``; the same files give the same bytes.

    Args:
        files: path → content; folders are made as needed.
        block_size: bytes, a power of two from 128 to 4096.
        block_count: blocks; as few as possible by default, in whole units of 4096 bytes.

    Raises:
        LittlefsError: ``fs_name`` (a path that cannot be stored), ``fs_full``, ``fs_build``.
    """
    for path in files:
        check_path(path, files)
    if block_count is not None:
        return _format_and_fill(files, block_size, block_count)[0]
    unit = max(1, 4096 // block_size)
    # littlefs needs a little room beside what it uses; the loop finds how much.
    total = sum(map(len, files.values()))
    count = _round_up((total * 2 // block_size) + 8 * len(files) + 64, unit)
    used = _format_and_fill(files, block_size, count)[1]
    count = _round_up(used, unit)
    while True:
        try:
            return _format_and_fill(files, block_size, count)[0]
        except LittlefsError:
            count += unit


def check_path(path: str, files: Mapping[str, bytes]) -> None:
    """Refuse a path that cannot be stored (LittlefsError ``fs_name``)."""
    parts = path.split("/")
    if not all(0 < len(part.encode()) <= NAME_MAX for part in parts) or {".", ".."} & {*parts}:
        raise LittlefsError("fs_name", "not a path for a file", found=path)
    for depth in range(1, len(parts)):
        if "/".join(parts[:depth]) in files:
            raise LittlefsError("fs_name", "a folder has the name of a file", found=path)


def _format_and_fill(
    files: Mapping[str, bytes], block_size: int, block_count: int
) -> tuple[bytes, int]:
    """Return the image and the number of blocks in use."""
    from littlefs import LittleFS, LittleFSError

    fs = LittleFS(
        block_size=block_size,
        block_count=block_count,
        disk_version=VERSION,
        mount=False,
        read_size=_READ,
        prog_size=_PROGRAM,
        cache_size=_CACHE,
        lookahead_size=_LOOKAHEAD,
    )
    try:
        fs.format()
        fs.mount()
        made: set[str] = set()
        for path in sorted(files):
            parts = path.split("/")
            for depth in range(1, len(parts)):
                folder = "/".join(parts[:depth])
                if folder not in made:
                    fs.mkdir(folder)
                    made.add(folder)
            with fs.open(path, "wb") as file:
                file.write(files[path])
        used = fs.used_block_count
        fs.unmount()
        if stored_geometry(fs.context.buffer) != (block_size, block_count):
            raise LittlefsError("fs_build", "littlefs moved the superblock")
    except LittleFSError as error:
        if error.code == LittleFSError.Error.LFS_ERR_NOSPC:
            raise LittlefsError(
                "fs_full",
                "the files do not fit into the filesystem",
                found=f"{sum(map(len, files.values()))} bytes in {len(files)} files",
                expected=f"at most {block_size * block_count} bytes, overhead included",
            ) from error
        raise LittlefsError("fs_build", f"littlefs refuses: {error}") from error
    return bytes(fs.context.buffer), used


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
