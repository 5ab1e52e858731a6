"""Sorts the files of an app's folder: those for the release, and those left out, with reasons.

Sources are compiled. A module that is compiled already (``.mpy``) goes in as it is, when beacons
can load it. Every other file is left out and listed with the reason, unless a pattern includes it.
Folders of tools (virtual environments, caches, checkpoints, version control) are not searched.
"""

import ast
import fnmatch
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeVar

from beacon_ota import text_files
from beacon_ota.images.appfs import MAIN, AppError

T = TypeVar("T")

AGENT = "ota.agent"  # the module without which a beacon is never updated again
MAX_FILES = 2000
MAX_FILE = 2 << 20  # bytes of one file
_MPY = b"M\x06"  # the file's mark, and the bytecode's version
_ARCHITECTURE = 0xFC  # bits of the third byte that name a processor, or a feature of one
_SMALL_INT = 31  # bits of a small integer on the C3
_TOOLS = frozenset(("__pycache__", "node_modules", "site-packages", "venv", "env"))

# Of the rules that beacons share with the host: those that only the host applies.
HOST_ONLY = frozenset(
    f"wire/{name}.py"
    for name in ("access_reader", "auth_header", "blufi_names", "report", "scan", "wifi_reader")
)


@dataclass(frozen=True)
class AppFolder:
    """What was found in an app's folder; paths below it, with ``/``, sorted.

    Attributes:
        sources: Python files that are compiled: path → text.
        files: what goes in as it is: compiled modules, and what a pattern asked for.
        left: what stays behind: path → reason. A folder ends with ``/`` and stands for all in it.
    """

    sources: Mapping[str, bytes]
    files: Mapping[str, bytes] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_agent(self) -> bool:
        """Whether the update agent is here, and ``main`` or what it imports imports it."""
        compiled = any(AGENT.encode() in data for data in self.files.values())
        there = AGENT.replace(".", "/") + ".py" in self.sources
        return compiled or (there and AGENT in _reachable_modules(self.sources))


def scan_folder(folder: Path, include: Sequence[str] = ()) -> AppFolder:
    """Look through an app's folder.

    Args:
        folder: the one with ``main.py``.
        include: patterns of files that go in as they are, of their path or name: ``*.json``.

    Raises:
        AppError: ``app_main`` (no ``main.py``), ``app_file`` (a compiled module that beacons cannot
            load, one beside its source, a pattern that fits nothing, too large, too many),
            ``app_unreadable``.
    """
    sources: dict[str, bytes] = {}
    files: dict[str, bytes] = {}
    left: dict[str, str] = {}
    used: set[str] = set()
    for name, file, reason in _walk_files(folder):
        fits = [one for one in include if reason is None and _matches_pattern(name, one)]
        used.update(fits)
        if reason is not None:
            left[name] = reason
        elif name in HOST_ONLY:
            left[name] = "only the host applies it"
        elif name.endswith(".py") and not PurePosixPath(name).name.startswith("."):
            sources[name] = _read_content(file, name)
        elif name.endswith(".mpy"):
            files[name] = _check_compiled(_read_content(file, name), name)
        elif fits:
            files[name] = _read_content(file, name)
        else:
            left[name] = "not a module; --include takes it"
        if len(sources) + len(files) > MAX_FILES:
            raise AppError("app_file", f"an app has at most {MAX_FILES} files", found=str(folder))
    if unused := [one for one in include if one not in used]:
        raise AppError("app_file", "no file of the app fits --include", found=", ".join(unused))
    if f"{MAIN}.py" not in sources and f"{MAIN}.mpy" not in files:
        raise AppError("app_main", "an app needs a main.py", found=str(folder))
    for name in files:
        if name.endswith(".mpy") and name.removesuffix(".mpy") + ".py" in sources:
            raise AppError("app_file", "a module is there as source and compiled", found=name)
    return AppFolder(_sort_paths(sources), _sort_paths(files), _sort_paths(left))


def read_sources(folder: Path) -> dict[str, bytes]:
    """Return the sources of an app: path below ``folder`` with ``/`` → text, sorted.

    Raises:
        AppError: as :func:`scan_folder`.
    """
    return dict(scan_folder(folder).sources)


def _sort_paths(found: dict[str, T]) -> dict[str, T]:
    return dict(sorted(found.items()))


def _walk_files(folder: Path) -> Iterator[tuple[str, Path, str | None]]:
    """Yield every file with its path below the folder, and the reason why it stays behind."""
    for root, folders, names in os.walk(folder):
        here = Path(root)
        for name in sorted(folders):
            if reason := _tool_reason(here / name):
                folders.remove(name)
                yield (here / name).relative_to(folder).as_posix() + "/", here / name, reason
        folders.sort()
        for name in sorted(names):
            file = here / name
            path = file.relative_to(folder).as_posix()
            if not file.is_file():
                yield path, file, "not a file"
            elif name.startswith("."):
                yield path, file, "hidden"
            else:
                yield path, file, None


def _tool_reason(folder: Path) -> str | None:
    if folder.name.startswith("."):
        return "hidden"
    if (folder / "pyvenv.cfg").exists():
        return "a virtual environment"
    if folder.name in _TOOLS or folder.name.endswith((".egg-info", ".dist-info")):
        return "made by tools"
    return "a link" if folder.is_symlink() else None


def _matches_pattern(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(
        PurePosixPath(name).name, pattern
    )


def _read_content(file: Path, name: str) -> bytes:
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_FILE + 1)
    except OSError as error:
        raise AppError("app_unreadable", f"{name} cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE:
        raise AppError("app_file", f"{name} is larger than {MAX_FILE} bytes")
    return data


def _check_compiled(data: bytes, name: str) -> bytes:
    """Check that beacons can load a module: bytecode 6, no machine code, small enough integers."""
    if data[:2] != _MPY or len(data) < 4:
        raise AppError(
            "app_file",
            f"{name} is no module that beacons can load",
            found=data[:2].hex(),
            expected=f"{_MPY.hex()}: mpy-cross for MicroPython 1.23 or newer",
        )
    if data[2] & _ARCHITECTURE:
        raise AppError("app_file", f"{name} holds machine code", expected="bytecode alone")
    if data[3] > _SMALL_INT:
        raise AppError(
            "app_file",
            f"{name} has larger small integers than beacons",
            found=f"{data[3]} bits",
            expected=f"mpy-cross -msmall-int-bits={_SMALL_INT}",
        )
    return data


def _reachable_modules(sources: Mapping[str, bytes]) -> set[str]:
    """Return the names of all modules that ``main`` imports, whether the app has them or not."""
    found: set[str] = set()
    queue = [MAIN]
    while queue:
        module = queue.pop()
        path = module.replace(".", "/")
        file = next((f for f in (f"{path}.py", f"{path}/__init__.py") if f in sources), None)
        if file is None or module in found:
            found.add(module)
            continue
        found.add(module)
        queue.extend(_list_imports(text_files.decode_text(sources[file], file, error=AppError)))
    return found


def _list_imports(text: str) -> Iterator[str]:
    """Yield what a source imports: statements, wherever they stand, and names in quotes."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return  # the compiler reports it
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            for name in node.value.split():  # modules that are loaded by their names
                if all(part.isidentifier() for part in name.split(".")):
                    yield name
