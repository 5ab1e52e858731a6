"""Accepts uploads: streams the image to the disk, validates it, stores the release.

A refused upload leaves nothing behind: its bytes are in a temporary file until every check has
passed, and the row that makes a release of them is written last.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import BinaryIO, NamedTuple

from sqlalchemy import Connection

from beacon_ota.errors import InputError
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db import tables
from beacon_ota.orchestrator.db.connection import StorageError
from beacon_ota.orchestrator.db.tables import Fields, firmwares
from beacon_ota.orchestrator.db.tables.tokens import Actor
from beacon_ota.orchestrator.http.problems import Problem
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.releases import validate
from beacon_ota.orchestrator.releases.multipart import MultipartForm


class Uploaded(NamedTuple):
    """A release, and whether this upload created it."""

    row: Fields
    created: bool


class _VersionTakenError(Exception):
    """Another process has stored this version in the meantime."""

    def __init__(self, row: Fields):
        super().__init__(row["id"])
        self.row = row


async def _always_allowed() -> None:
    """Accept the upload whatever has happened to the token since its beginning."""


async def accept_upload(
    service: Service,
    actor: Actor,
    content_type: str,
    body: AsyncIterator[bytes],
    may_still: Callable[[], Awaitable[object]] = _always_allowed,
) -> Uploaded:
    """Receive, validate and store a release.

    Args:
        content_type: the request's header.
        body: the request's body.
        may_still: raises if the actor has lost the right to upload since the request began.

    Raises:
        InputError: with a code of contracts.md §3.
        StorageError: ``storage``, when the disk is full, for example; nothing is kept.
    """
    try:
        return await _receive_and_store(service, actor, content_type, body, may_still)
    except OSError as error:
        why = error.strerror or str(error)
        raise StorageError("storage", f"the image cannot be stored: {why}") from None


async def _receive_and_store(
    service: Service,
    actor: Actor,
    content_type: str,
    body: AsyncIterator[bytes],
    may_still: Callable[[], Awaitable[object]],
) -> Uploaded:
    with service.blobs.open_incoming() as file:
        form = MultipartForm(content_type, "binary", file, LIMITS.upload_image)
        try:
            await _receive_form(form, body)
        except InputError as error:
            raise _name_refusal(file, error) from None
        claim = validate.read_claim(form)
        file.flush()
        found = await asyncio.to_thread(
            validate.examine_image,
            file,
            claim,
            service.settings.trusted,
            service.settings.insecure,
            service.clock.now(),
        )
        async with service.uploads:
            await may_still()
            return await _store_release(service, actor, file, claim, found)


async def _receive_form(form: MultipartForm, body: AsyncIterator[bytes]) -> None:
    total = 0
    bound = LIMITS.upload_image + LIMITS.upload_parts * LIMITS.upload_field
    pieces = aiter(body)
    while True:
        try:
            async with asyncio.timeout(LIMITS.body_stall):
                piece = await anext(pieces)
        except StopAsyncIteration:
            break
        except TimeoutError:
            raise Problem(408, "body_stalled", "the upload stopped arriving") from None
        total += len(piece)
        if total > bound:
            raise InputError("image_too_large", "the body is too long", expected=bound)
        form.feed(piece)
    form.close()


def _name_refusal(file: BinaryIO, error: InputError) -> InputError:
    """Return the refusal of an image that is too large; a flash image gets its own."""
    if error.code != "image_too_large":
        return error
    file.seek(0)
    return validate.detect_flash_image(file.read(36 * 1024)) or error


async def _store_release(
    service: Service,
    actor: Actor,
    file: BinaryIO,
    claim: validate.UploadClaim,
    found: validate.ExaminedImage,
) -> Uploaded:
    """Store image and row of a validated release."""
    same = await service.db.read(firmwares.get_by_version, claim.device_type, claim.version)
    if same is not None:
        return await _renew_release(service, actor, same, file, found)
    now = service.clock.now()
    row: Fields = {
        "id": tables.new_id(),
        "device_type": claim.device_type,
        "version": claim.version,
        "checksum": found.checksum,
        "size": found.size,
        "blob": found.blob,
        "description": claim.description,
        "required": claim.required or found.required,
        "state": "stable" if claim.channel == "stable" else "testing",
        "manifest": claim.manifest,
        "expires_at": found.expires_at,
        "blocks": found.blocks,
        "info": json.dumps(found.info),
        "uploaded_at": now,
        "uploaded_by": actor.name,
        "promoted_at": now if claim.channel == "stable" else None,
    }

    def insert_release(conn: Connection) -> Fields:
        existing = firmwares.get_by_version(conn, claim.device_type, claim.version)
        if existing is not None:
            raise _VersionTakenError(existing)
        return firmwares.add(conn, row)

    new = await asyncio.to_thread(service.blobs.commit, file, found.blob)
    try:
        stored = await asyncio.shield(
            service.change_audited(
                actor.name,
                "firmware.uploaded",
                row["id"],
                insert_release,
                then=service.fleet.put_release,
                detail={
                    "device_type": claim.device_type,
                    "version": claim.version,
                    "checksum": found.checksum,
                    "size": found.size,
                },
            )
        )
    except _VersionTakenError as error:  # an upload to another process was faster
        return await _renew_release(service, actor, error.row, file, found)
    except Exception:
        if new and not service.shared:  # another process might just have found the bytes
            await asyncio.to_thread(service.blobs.remove, found.blob)
        raise
    return Uploaded(stored, True)


async def _renew_release(
    service: Service, actor: Actor, same: Fields, file: BinaryIO, found: validate.ExaminedImage
) -> Uploaded:
    """Accept the same bytes for an existing version: repair the image, take a new manifest."""
    if same["checksum"] != found.checksum or same["blob"] != found.blob:
        raise InputError(
            "version_taken",
            "this version is there with other bytes; give the new release a higher one",
            found=found.checksum,
            expected=same["checksum"],
        )
    values: Fields = {}
    if same["damaged_at"] is not None:
        await asyncio.to_thread(service.blobs.remove, found.blob)
        await asyncio.to_thread(service.blobs.commit, file, found.blob)
        values["damaged_at"] = None
    if found.manifest is not None and found.manifest != same["manifest"]:
        values |= {"manifest": found.manifest, "expires_at": found.expires_at}
    if found.blocks is not None and found.blocks != same["blocks"]:
        values["blocks"] = found.blocks
    if not values:
        return Uploaded(same, False)

    def write_renewal(conn: Connection) -> Fields:
        row = firmwares.update_columns(conn, same["id"], **values)
        assert row is not None
        return row

    row = await service.change_audited(
        actor.name,
        "firmware.renewed",
        same["id"],
        write_renewal,
        then=service.fleet.put_release,
        detail={"what": sorted(values)},
    )
    return Uploaded(row, False)
