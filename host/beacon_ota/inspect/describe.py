"""Describes the parts of a file: core, bootloader, release, otadata, settings, partitions."""

from datetime import UTC, datetime

from beacon_ota.errors import InputError
from beacon_ota.images import (
    Buffer,
    appfs,
    blocks,
    boards,
    compare,
    flash,
    littlefs,
    nvs,
    otadata,
)
from beacon_ota.images import release as releases
from beacon_ota.images import settings as schema
from beacon_ota.images.esp_format import AppImage, Bootloader
from beacon_ota.images.partition_table import Table
from beacon_ota.images.release import Release
from beacon_ota.inspect.report import BAD, GOOD, NOTE, WARN, InspectionReport, Json
from beacon_ota.wire import versions

OLDEST_INTERPRETER = "1.21.0"  # of stock MicroPython whose bootloader rolls back


_PROVISIONED = ("wifi_ssid", "beacon_id", "beacon_key")


def describe_core(report: InspectionReport, core: AppImage) -> Json:
    """Describe a core."""
    version = core.interpreter
    if version is None:
        report.add_finding(WARN, "interpreter", "no MicroPython in the core: it would run nothing")
    elif _is_older(version):
        text = (
            f"MicroPython {version} is older than {OLDEST_INTERPRETER}:"
            " its bootloader may not roll back"
        )
        report.add_finding(WARN, "interpreter", text)
    return {
        "interpreter": version,
        "idf": core.descriptor.idf,
        "built": f"{core.descriptor.date} {core.descriptor.time}".strip(),
        "version": core.descriptor.version,
        "elf_sha256": core.descriptor.elf_sha256,
        "length": core.length,
        "sha256": core.sha256,
        "segments": [
            {"memory": found.memory, "address": f"0x{found.address:08X}", "length": found.length}
            for found in core.segments
        ],
    }


def _is_older(version: str) -> bool:
    try:
        return versions.compare(version[1:], OLDEST_INTERPRETER) < 0
    except ValueError:
        return False


def describe_bootloader(loader: Bootloader) -> Json:
    """Describe a bootloader."""
    return {
        "idf": loader.idf,
        "built": loader.built,
        "length": loader.length,
        "flash_size": loader.flash_size,
        "flash_mode": loader.flash_mode,
    }


def describe_release(report: InspectionReport, found: Release, where: str) -> Json:
    """Describe a release; ``where`` is the prefix of its findings."""
    facts = describe_app_info(report, found.info, where)
    facts |= {
        "checksum": found.checksum,
        "size": found.size,
        "core_length": found.core.length,
        "app_offset": found.app_offset,
        "app_size": found.app_size,
        "payload": found.payload,
        "frozen": found.frozen,
        "files": {name: len(data) for name, data in sorted(found.files.items())},
    }
    if found.payload > appfs.BUDGET:
        text = f"{where}{found.payload:,} bytes of code, more than {appfs.BUDGET:,}: RAM runs short"
        report.add_finding(WARN, "budget", text)
    facts["keys"] = _describe_keys(report, found, where)
    return facts


def describe_layout(data: Buffer, found: Release) -> list[Json]:
    """Describe what lies in each sector of a release; sectors of the core are one row."""
    places = compare.locate_parts(data, found)
    count = -(-found.size // blocks.SECTOR)
    core = sum(names == {compare.CORE} for names in places.values())
    rows: list[Json] = [{"sector": f"0-{core - 1}", "offset": 0, "holds": compare.CORE}]
    for sector in range(core, count):
        names = places.get(sector, set())
        holds = " ".join(sorted(names)) or "nothing that is used"
        rows.append({"sector": str(sector), "offset": sector * blocks.SECTOR, "holds": holds})
    return rows


def _describe_keys(report: InspectionReport, found: Release, where: str) -> Json | None:
    """Describe the keys that the release trusts; a release without keys must be insecure."""
    data = found.files.get(appfs.KEYS)
    if data is None:
        if not found.info.insecure:
            text = f"{where}trusts no keys: a beacon that runs it could never be updated again"
            report.add_finding(BAD, "keys_missing", text)
        return None
    from beacon_ota.trust import KeySet

    try:
        keys = KeySet.parse(data)
    except InputError as error:
        report.add_error(f"{where}{appfs.KEYS}", error)
        return None
    return {"threshold": keys.threshold, "keyids": sorted(keys.keys)}


def describe_app_info(report: InspectionReport, info: appfs.AppInfo, where: str) -> Json:
    """Describe an ``app.json``."""
    if info.insecure:
        text = f"{where}INSECURE: a beacon that runs it installs releases nobody signed"
        report.add_finding(WARN, "insecure", text)
    built = datetime.fromtimestamp(info.built_at, UTC).isoformat() if info.built_at else None
    return {**vars(info), "built": built}


def describe_otadata(
    report: InspectionReport, entries: tuple[otadata.Entry, otadata.Entry], slots: int
) -> list[Json]:
    """Describe the two otadata entries."""
    active = otadata.active_entry(entries)
    rows: list[Json] = []
    for sector, entry in enumerate(entries):
        blank = entry.seq == otadata.BLANK
        rows.append(
            {
                "sector": sector,
                "seq": None if blank else entry.seq,
                "slot": None if blank or not slots else f"ota_{entry.slot(slots)}",
                "state": None if blank else otadata.STATES.get(entry.state, hex(entry.state)),
                "crc": blank or entry.crc == otadata.sequence_crc(entry.seq),
                "trial_boots": entry.trial_boots,
                "active": sector == active,
            }
        )
        if not blank and entry.crc != otadata.sequence_crc(entry.seq):
            report.add_finding(
                WARN, "otadata_crc", f"otadata {sector}: wrong CRC, it does not count"
            )
    if active >= 0:
        row = rows[active]
        report.add_finding(GOOD, "otadata", f"otadata selects {row['slot']}, {row['state']}")
    else:
        report.add_finding(
            NOTE, "otadata", "otadata selects no slot: the factory app, or else ota_0"
        )
    if active >= 0 and entries[active].state in (otadata.NEW, otadata.PENDING):
        report.add_finding(NOTE, "trial", f"{rows[active]['slot']} is on trial, not confirmed yet")
    return rows


def describe_settings(report: InspectionReport, found: nvs.Nvs, secrets: bool) -> Json:
    """Describe the values in NVS; passwords and keys only with ``secrets``."""
    for text in found.notes:
        report.add_finding(WARN, "nvs", f"nvs: {text}")
    values: dict[str, dict[str, object]] = {}
    for entry in found.entries:
        hidden = not secrets and entry.namespace == schema.NAMESPACE and entry.key in schema.SECRETS
        value = "(hidden)" if hidden else _format_value(entry.value)
        values.setdefault(entry.namespace, {})[entry.key] = value
    own = values.get(schema.NAMESPACE, {})
    missing = [key for key in _PROVISIONED if key not in own]
    if missing:
        text = f"not provisioned: no {', '.join(missing)}"
        report.add_finding(NOTE, "provisioning", text)
    entries = sum(page.written for page in found.pages)
    return {"values": values, "pages": len(found.pages), "entries": entries}


def _format_value(value: int | str | bytes) -> object:
    """Return bytes as text where they are text, else as hex."""
    if not isinstance(value, bytes):
        return value
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return f"hex:{value.hex()}"
    return text if text.isprintable() else f"hex:{value.hex()}"


def describe_filesystem(found: littlefs.Filesystem) -> Json:
    """Describe a filesystem."""
    return {
        "block_size": found.block_size,
        "size": found.size,
        "version": ".".join(map(str, found.version)),
        "files": {name: len(data) for name, data in sorted(found.files.items())},
    }


def describe_partitions(table: Table) -> list[Json]:
    """Describe a partition table."""
    return [
        {
            "name": part.name,
            "type": part.type_name,
            "subtype": part.subtype_name,
            "offset": part.offset,
            "size": part.size,
        }
        for part in table
    ]


def check_fit(report: InspectionReport, size: int) -> None:
    """Report the boards whose slot the core fits, and the bytes left for the app."""
    for name in boards.board_names():
        board = boards.load_board(name)
        room = board.slot_size - releases.app_offset(size)
        if room > 0:
            report.add_finding(GOOD, "fits", f"{name}: fits, {room:,} bytes for the app")
        else:
            report.add_finding(NOTE, "slot_too_small", f"{name}: too large by {-room:,} bytes")


def check_boot(report: InspectionReport, data: Buffer) -> str | None:
    """Return the partition that a chip would boot, by the virtual bootloader on a copy."""
    from beacon_ota.virtual.flash import bootloader
    from beacon_ota.virtual.flash.nor import Flash

    report.facts["boots"] = None
    if len(data) % flash.SECTOR:
        report.add_finding(WARN, "flash_size", "not a whole number of 4096-byte sectors")
        return None
    try:
        booted = bootloader.boot_from_flash(Flash(bytes(data)))
    except bootloader.NotBootable as error:
        report.add_finding(BAD, "not_bootable", f"does not boot: {error}")
        return None
    name = booted.partition.name
    report.facts["boots"] = name
    report.add_finding(GOOD, "boots", f"boots {name}")
    return name
