"""Limits the memory that glibc's malloc keeps; other C libraries are left as they are."""

import contextlib
import ctypes
from typing import Any

# Options of malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8


def limit_to_one_arena() -> None:
    """Keep one heap for all threads, and give back its free end.

    The threads hardly run at once, and each would keep its own free memory.
    """
    _call_libc("mallopt", _ARENA_MAX, 1)
    _call_libc("mallopt", _TRIM_THRESHOLD, 256 * 1024)


def map_buffers() -> None:
    """Map every buffer above 128 KiB, so that it leaves no hole when it is freed.

    By itself glibc stops doing so for buffers as large as one that was freed.
    """
    _call_libc("mallopt", _MMAP_THRESHOLD, 128 * 1024)


def trim_heap() -> None:
    """Give back all pages that are free."""
    _call_libc("malloc_trim", 0)


def _call_libc(name: str, *args: Any) -> None:
    with contextlib.suppress(OSError, AttributeError, TypeError):  # TypeError: Windows
        getattr(ctypes.CDLL(None), name)(*args)
