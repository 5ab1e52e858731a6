"""Identifies a file of the pipeline and reports its parts and defects."""

import hashlib
from collections.abc import Callable

from beacon_ota.errors import InputError
from beacon_ota.images import (
    Buffer,
    appfs,
    boards,
    combined,
    esp,
    esp_format,
    flash,
    littlefs,
    nvs,
    nvs_format,
    otadata,
    partition_table,
    partitions,
    release,
)
from beacon_ota.images.partition_table import TABLE_OFFSET, Table
from beacon_ota.inspect import describe
from beacon_ota.inspect.report import BAD, GOOD, NOTE, WARN, InspectionReport, Json

_TEXT_MAX = 64 * 1024  # bytes of a CSV


def identify_kind(data: Buffer) -> str:
    """Return the kind of a file, from its first bytes and its structure; ``unknown`` if none."""
    if partitions.is_table(data):
        return "partition table"
    if esp.is_flash_image(data):
        table = _parse_table(data)
        whole = table is None or table.otadata is not None or len(data) >= table.end
        return "flash image" if whole else "combined image"
    if len(data) and data[0] == esp_format.MAGIC:
        return _identify_image(data)
    if littlefs.is_littlefs(data):
        return "littlefs"
    if len(data) == otadata.SIZE and any(
        _is_plausible(entry) for entry in otadata.parse_entries(data)
    ):
        return "otadata"
    if len(data) and not len(data) % nvs_format.PAGE:
        headers = [
            nvs_format.parse_header(bytes(data[at : at + 64]))
            for at in range(0, len(data), nvs_format.PAGE)
        ]
        if any(header.ok for header in headers):
            return "nvs"
    if len(data) and bytes(data).count(0xFF) == len(data):
        return "blank flash"
    return "partition csv" if _parse_csv(data) is not None else "unknown"


def inspect_file(data: Buffer, *, secrets: bool = False) -> InspectionReport:
    """Inspect a file.

    Args:
        secrets: show passwords and keys.

    Raises:
        InputError: ``image_unknown``: no known kind of file.
    """
    kind = identify_kind(data)
    report = InspectionReport(kind, len(data), hashlib.sha256(data).hexdigest())
    if kind == "unknown":
        raise InputError(
            "image_unknown",
            "not a file we know",
            found=bytes(data[:8]).hex() or "nothing",
            expected="an ESP32 image, a release, a flash image, a partition table, NVS, LittleFS",
        )
    if kind == "blank flash":
        report.add_finding(NOTE, "blank", "all bytes are FF: erased flash")
        return report
    try:
        _DESCRIBE[kind](report, data, secrets)
    except InputError as error:
        report.add_error(kind, error)
    return report


def _identify_image(data: Buffer) -> str:
    try:
        core = esp.parse_app_image(data)
    except InputError as error:
        if error.code in ("image_descriptor", "image_truncated"):
            try:
                esp.parse_bootloader(data)
                return "bootloader"
            except InputError:
                pass
        return "app image"
    behind = littlefs.is_littlefs(data, release.app_offset(core.length))
    return "release" if behind or release.frozen_app(core) else "app image"


def _is_plausible(entry: otadata.Entry) -> bool:
    return entry.seq != otadata.BLANK and entry.crc == otadata.sequence_crc(entry.seq)


def _parse_csv(data: Buffer) -> Table | None:
    try:
        return partitions.parse_csv(bytes(data[:_TEXT_MAX]).decode())
    except (UnicodeDecodeError, partition_table.PartitionError):
        return None


def _parse_table(data: Buffer) -> Table | None:
    try:
        return partitions.parse_bin(data, offset=TABLE_OFFSET)
    except partition_table.PartitionError:
        return None


def _describe_app(report: InspectionReport, data: Buffer, secrets: bool) -> None:
    core = esp.parse_app_image(data)
    report.facts["core"] = describe.describe_core(report, core)
    report.add_finding(GOOD, "image", "checksum and SHA-256 match")
    if core.length != len(data):
        report.add_finding(NOTE, "trailing", f"{len(data) - core.length:,} bytes follow the image")
    report.add_finding(
        NOTE, "app_missing", "a core alone: beacon-ota image build makes a release of it"
    )
    describe.check_fit(report, core.length)


def _describe_bootloader(report: InspectionReport, data: Buffer, secrets: bool) -> None:
    report.facts["bootloader"] = describe.describe_bootloader(esp.parse_bootloader(data))
    report.add_finding(GOOD, "image", "checksum and SHA-256 match")


def _describe_release(report: InspectionReport, data: Buffer, secrets: bool) -> None:
    found = release.parse_release(data)
    report.facts["core"] = describe.describe_core(report, found.core)
    report.facts["release"] = describe.describe_release(report, found, "")
    report.facts["layout"] = describe.describe_layout(data, found)
    report.add_finding(GOOD, "image", "core and app are whole and belong together")
    try:
        board = boards.board_for_device_type(found.info.device_type)
    except InputError as error:
        report.add_finding(WARN, error.code, f"no board here has the device type {error.found}")
        return
    try:
        board.check_fit(found.size)
    except InputError as error:
        report.add_error("size", error)
        return
    room = board.slot_size - found.size
    report.add_finding(GOOD, "fits", f"fits a slot of {board.name}, {room:,} bytes to spare")


def _describe_combined(report: InspectionReport, data: Buffer, secrets: bool) -> None:
    core = combined.split_image(data)
    report.facts["table"] = describe.describe_partitions(
        partitions.parse_bin(data, offset=TABLE_OFFSET)
    )
    report.facts["core"] = describe.describe_core(report, core.image)
    if core.bootloader_image is not None:
        report.facts["bootloader"] = describe.describe_bootloader(core.bootloader_image)
    report.add_finding(GOOD, "image", "bootloader and core are whole")
    report.add_finding(
        NOTE, "combined", "its own partition table is not used; --core takes it as it is"
    )
    describe.check_fit(report, core.image.length)


def _describe_flash(report: InspectionReport, data: Buffer, secrets: bool) -> None:
    found = flash.parse_flash(data)
    report.facts["board"] = found.board.name if found.board else None
    report.facts["table"] = describe.describe_partitions(found.table)
    if found.board is None:
        report.add_finding(
            NOTE, "board_unknown", "no board here has this partition table and flash size"
        )
    if found.bootloader is not None:
        report.facts["bootloader"] = describe.describe_bootloader(found.bootloader)
    boots = describe.check_boot(report, data)
    if found.otadata is not None:
        report.facts["otadata"] = describe.describe_otadata(
            report, found.otadata, len(found.table.slots)
        )
    report.facts["apps"] = [_describe_slot(report, app, boots) for app in found.apps]
    if found.settings is not None:
        report.facts["settings"] = describe.describe_settings(report, found.settings, secrets)
    if found.vfs is not None:
        report.facts["vfs"] = describe.describe_filesystem(found.vfs)
        if found.vfs.files != flash.stage0_files():
            report.add_finding(
                NOTE, "stage0", "the vfs holds other files than this version's stage 0"
            )
    else:
        report.add_finding(WARN, "vfs", "the vfs is empty or damaged: nothing would start the app")
    slots = {app.partition.name for app in found.apps}
    for part, error in found.errors.items():
        if part not in slots:
            report.add_error(part, error)


def _describe_slot(report: InspectionReport, app: flash.AppSlot, boots: str | None) -> Json:
    """Describe an app partition; a slot that does not boot may hold half a download."""
    name = app.partition.name
    row: Json = {"partition": name, "blank": app.blank, "boots": name == boots}
    if app.error is not None:
        report.add_error(name, app.error, WARN if boots not in (None, name) else BAD)
    if app.release is not None:
        row["release"] = describe.describe_release(report, app.release, f"{name}: ")
        row["interpreter"] = app.release.core.interpreter
        info = app.release.info
        report.add_finding(GOOD, "release", f"{name}: {info.device_type} {info.version}")
    return row


def _describe_table(report: InspectionReport, data: Buffer, secrets: bool) -> None:
    binary = report.kind == "partition table"
    table = partitions.parse_bin(data) if binary else partitions.parse_csv(bytes(data).decode())
    report.facts["table"] = describe.describe_partitions(table)
    report.facts["flash"] = table.end
    report.add_finding(GOOD, "table", "keeps all rules of ESP-IDF")
    if not table.slots or table.otadata is None:
        report.add_finding(WARN, "table_ota", "no OTA slots or no otadata: it cannot be updated")


def _describe_nvs(report: InspectionReport, data: Buffer, secrets: bool) -> None:
    report.facts["settings"] = describe.describe_settings(report, nvs.read_partition(data), secrets)


def _describe_littlefs(report: InspectionReport, data: Buffer, secrets: bool) -> None:
    found = littlefs.read_filesystem(data)
    report.facts["filesystem"] = describe.describe_filesystem(found)
    if appfs.INFO in found.files:
        report.kind = "app filesystem"
        info = appfs.AppInfo.parse(found.files[appfs.INFO])
        report.facts["info"] = describe.describe_app_info(report, info, "")
    report.add_finding(GOOD, "littlefs", "all files can be read")


def _describe_otadata(report: InspectionReport, data: Buffer, secrets: bool) -> None:
    report.facts["otadata"] = describe.describe_otadata(report, otadata.parse_entries(data), 2)


_DESCRIBE: dict[str, Callable[[InspectionReport, Buffer, bool], None]] = {
    "app image": _describe_app,
    "bootloader": _describe_bootloader,
    "release": _describe_release,
    "combined image": _describe_combined,
    "flash image": _describe_flash,
    "partition table": _describe_table,
    "partition csv": _describe_table,
    "nvs": _describe_nvs,
    "littlefs": _describe_littlefs,
    "otadata": _describe_otadata,
}
