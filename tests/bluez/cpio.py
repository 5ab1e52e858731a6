"""Writes an initial RAM file system: a cpio archive in the format ``newc``, every file root's."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

_TRAILER = "TRAILER!!!"


class CpioWriter:
    """Writes an archive.

    Args:
        out: where to.
    """

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._inode = 0
        self._names: set[str] = set()

    def add_tree(self, folder: Path, name: str = "", skip: frozenset[str] = frozenset()) -> None:
        """Add a folder's contents under a name; ``skip``: archive names that are left out."""
        for child in sorted(folder.iterdir()):
            path = f"{name}/{child.name}".lstrip("/")
            if path in skip or child.name == "__pycache__":
                continue
            if child.is_symlink():
                self.add(path, stat.S_IFLNK | 0o777, os.readlink(child).encode())
            elif child.is_dir():
                self.add_folder(path)
                self.add_tree(child, path, skip)
            elif child.is_file():
                mode = 0o755 if child.stat().st_mode & 0o100 else 0o644
                self.add(path, stat.S_IFREG | mode, child.read_bytes())

    def add_folder(self, path: str) -> None:
        """Add a folder, and those above it."""
        above, _, _ = path.rpartition("/")
        if above:
            self.add_folder(above)
        self.add(path, stat.S_IFDIR | 0o755)

    def add(self, path: str, mode: int, data: bytes = b"") -> None:
        """Add an entry; one that is there already counts."""
        if path in self._names:
            return
        self._names.add(path)
        self._inode += 1
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path.encode()) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._write(head + path.encode() + b"\0")
        self._write(data)

    def close(self) -> None:
        """Write the end."""
        self.add(_TRAILER, 0)

    def _write(self, data: bytes) -> None:
        self._out.write(data + b"\0" * (-len(data) % 4))
