"""Release images, the content of an OTA slot: built, renumbered and checked.

Core, FF to the next 4 KiB, app filesystem: one file, one hash, which is signed. The bootloader
stops reading where the core ends; the beacon finds the app by walking the core's headers.
A core with the app frozen in says what it is in the version of its app description,
``<device type> <version>``. It is a release as it is; the filesystem behind it, if there is one,
holds what cannot be frozen: ``app.json`` and the trusted keys.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from beacon_ota.errors import InputError
from beacon_ota.images import Buffer, app_layout, appfs, esp, littlefs, littlefs_writer
from beacon_ota.images.appfs import AppError, AppInfo
from beacon_ota.images.esp_format import AppImage
from beacon_ota.wire import versions

SECTOR = 4096


@dataclass(frozen=True)
class Release:
    """A release image, taken apart.

    Args:
        core: the app image in front.
        core_sha256: SHA-256 of its bytes, hex.
        info: what ``app.json`` says, or the app description of a core with a frozen app.
        files: the app filesystem's files; empty when the app is frozen.
        app_offset: where the app filesystem begins, or None.
        app_size: its bytes.
        size: bytes of the image.
        checksum: SHA-256 of the image, hex.
    """

    core: AppImage
    core_sha256: str
    info: AppInfo
    files: dict[str, bytes]
    app_offset: int | None
    app_size: int
    size: int
    checksum: str

    @property
    def frozen(self) -> bool:
        """Whether there is no filesystem: everything is part of the core."""
        return self.app_offset is None

    @property
    def payload(self) -> int:
        """Bytes of compiled code."""
        return sum(len(data) for name, data in self.files.items() if name.endswith(".mpy"))


def app_offset(core_length: int) -> int:
    """Return where the app filesystem lies behind a core of this length."""
    return -(-core_length // SECTOR) * SECTOR


def join_core_and_app(core: bytes, app: bytes) -> bytes:
    """Join a core (an app image, nothing behind it) and an app filesystem."""
    return core.ljust(app_offset(len(core)), b"\xff") + app


def build_release(
    core: bytes,
    texts: Mapping[str, bytes],
    version: str,
    device_type: str,
    *,
    built_at: int = 0,
    keys: bytes | None = None,
    insecure: bool = False,
    extra: Mapping[str, bytes] | None = None,
    like: Buffer | None = None,
    slot_size: int | None = None,
) -> bytes:
    """Compile an app and put it behind a core: a release in one step.

    Args:
        like: an earlier release image; files stay where they are in it, as far as possible.
        slot_size: bytes of the slot, which bound the room that staying in place may take.

    Raises:
        AppError, LittlefsError: as :func:`beacon_ota.images.appfs.build_app`.
        AppError, ImageError: ``like`` is no release, as :func:`parse_release`.
    """
    info = AppInfo(version, device_type, hashlib.sha256(core).hexdigest(), built_at, insecure)
    room = None if slot_size is None else slot_size - app_offset(len(core))
    app = appfs.build_app(
        texts, info, keys=keys, extra=extra, earlier=_find_layout(like), room=room
    )
    return join_core_and_app(core, app.image)


def _find_layout(like: Buffer | None) -> app_layout.Earlier | None:
    """Return the app filesystem of an earlier release, None without one to lay files out like."""
    if like is None:
        return None
    found = parse_release(like)
    return None if found.app_offset is None else app_layout.read_earlier(like, found.app_offset)


def renumber_release(
    data: bytes, version: str, *, built_at: int | None = None, keys: bytes | None = None
) -> bytes:
    """Return the same release under a higher version: core and code stay as they are.

    Args:
        data: a release image.
        built_at: UTC seconds; None keeps what it says.
        keys: the trusted keys, ``keys.json``, in place of those in it.

    Raises:
        AppError: ``app_frozen`` (its version is part of the core), ``app_version``.
        InputError: ``version_not_higher``; what :func:`parse_release` refuses.
    """
    found = parse_release(data)
    if found.app_offset is None or frozen_app(found.core) is not None:
        raise AppError(
            "app_frozen",
            "the app is frozen into the core, and so is its version: build it again",
            expected="a release with the app in a filesystem",
        )
    appfs.check_version(version)
    if versions.compare(version, found.info.version) <= 0:
        raise InputError(
            "version_not_higher",
            "beacons take nothing that is not above what they run",
            found=version,
            expected=f"above {found.info.version}",
        )
    when = found.info.built_at if built_at is None else built_at
    info = replace(found.info, version=version, built_at=when)
    files = {**found.files, appfs.INFO: info.pack()}
    if keys is not None:
        files[appfs.KEYS] = keys
    core = bytes(data[: found.core.length])
    earlier = app_layout.read_earlier(data, found.app_offset)
    if earlier is not None:
        return join_core_and_app(core, appfs.pack_app(files, earlier))
    # Built before layouts were kept: littlefs puts everything where it was.
    block_size = littlefs.stored_geometry(data, found.app_offset)[0]
    return join_core_and_app(core, littlefs_writer.build_filesystem(files, block_size))


def parse_release(data: Buffer, offset: int = 0, size: int | None = None) -> Release:
    """Check a release image in all its parts.

    Args:
        data: the file, or a flash.
        offset: where the image begins.
        size: bytes of a slot to look into, where anything may follow the image. By default
            the image takes all of ``data``: a beacon hashes what belongs to the image, so
            that one byte more would look like another release.

    Raises:
        ImageError: the core, as :func:`beacon_ota.images.esp.parse_app_image`.
        AppError: ``app_missing``, ``app_mount``, ``app_json``, ``app_main``, ``app_version``,
            ``app_device_type``, ``app_core`` (built for another core), ``app_trailing``.
    """
    core = esp.parse_app_image(data, offset, size)
    end = len(data) if size is None else min(len(data), offset + size)
    view = memoryview(data)[:end]
    core_sha256 = hashlib.sha256(view[offset : offset + core.length]).hexdigest()
    at = offset + app_offset(core.length)
    if littlefs.is_littlefs(view, at):
        found, info = appfs.read_app(view, at, frozen=frozen_app(core) is not None)
        files, length = found.files, found.size
        gap = bytes(data[offset + core.length : at])
        if gap.count(0xFF) != len(gap):
            raise AppError("app_mount", "between core and app filesystem there is more than FF")
        if info.core_sha256 != core_sha256:
            raise AppError(
                "app_core",
                "the app was built for another core",
                found=core_sha256,
                expected=info.core_sha256,
            )
        last = at + length
    else:
        info = _frozen_info(core, core_sha256)
        files, length, last = {}, 0, offset + core.length
    if size is None and last != end:
        raise AppError(
            "app_trailing",
            "there are bytes behind the release",
            found=end - offset,
            expected=last - offset,
        )
    return Release(
        core=core,
        core_sha256=core_sha256,
        info=info,
        files=files,
        app_offset=None if not length else at - offset,
        app_size=length,
        size=last - offset,
        checksum=hashlib.sha256(view[offset:last]).hexdigest(),
    )


def frozen_app(core: AppImage) -> tuple[str, str] | None:
    """Return (device type, version) of the app that is frozen into a core, None without one."""
    device_type, space, version = core.descriptor.version.partition(" ")
    return (device_type, version) if space else None


def _frozen_info(core: AppImage, core_sha256: str) -> AppInfo:
    """Return what a core with a frozen app says of itself."""
    said = frozen_app(core)
    if said is None:
        raise AppError(
            "app_missing",
            "a core alone: no app filesystem behind it, and no app frozen in",
            found=f"version {core.descriptor.version!r} in the app description",
            expected="beacon-ota image build",
        )
    device_type, version = said
    appfs.check_version(version)
    appfs.check_device_type(device_type)
    return AppInfo(version, device_type, core_sha256)
