"""Fuzzes every parser of input from peers, guided by coverage edges.

A case is one target for its share of the time. An input must lead to an answer or to a named
refusal; any other exception is a violation, reported with the input in hex.
"""

import contextlib
import hashlib
import io
import json
import logging
import random
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from beacon_ota.campaign.fuzz import blufi
from beacon_ota.campaign.fuzz.coverage import CoverageEdge, trace_edges
from beacon_ota.campaign.rig import builds
from beacon_ota.campaign.runner import CampaignOptions, CaseOutcome, CasePlan
from beacon_ota.errors import BeaconOtaError, UsageError
from beacon_ota.images import appfs, combined, esp, littlefs, partitions
from beacon_ota.images import release as releases
from beacon_ota.inspect import inspect
from beacon_ota.orchestrator.beacon_api import report_parser
from beacon_ota.orchestrator.releases import multipart, validate
from beacon_ota.trust import dsse
from beacon_ota.wire import manifest, offer, refused, report, shapes, versions

GROWTH = 256 * 1024 * 1024  # bytes that a target's process may grow by
WRONG = 10  # after so many a target ends
SLOW = 5.0  # seconds that one input may take
_WORDS = (b"", b"\0", b"\xff" * 4, b"{}", b"[]", b"null", b"-1", b"1e999", b"9" * 40, b'"')


@dataclass(frozen=True)
class FuzzTarget:
    """A parser to fuzz.

    Args:
        seeds: first inputs.
        read: parses one input.
        refusals: exceptions that are allowed.
        watched: modules whose coverage guides the mutations.
    """

    seeds: Sequence[bytes]
    read: Callable[[bytes], Any]
    refusals: tuple[type[Exception], ...]
    watched: Sequence[ModuleType]


def plan_cases(folder: Path, options: CampaignOptions) -> CasePlan:
    """List the targets; they share the minutes."""
    return CasePlan(["blufi", *TARGETS][:: options.every], {"minutes": options.minutes})


def run_case(name: str, folder: Path, options: CampaignOptions) -> CaseOutcome:
    """Fuzz one target for its share."""
    seconds = 60 * options.minutes / (1 + len(TARGETS))
    if name == "blufi":
        found = blufi.fuzz_provisioning(seconds, options.seed)
        facts = {"inputs": found.cases, "lines": found.steps, "kept": found.corpus}
        return CaseOutcome(name, "fuzz", "named or answered", found.wrong, facts=facts)
    if name not in TARGETS:
        raise UsageError("case_name", "no such target", found=name, expected=", ".join(TARGETS))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    facts, wrong = fuzz_target(TARGETS[name](), seconds, random.Random(options.seed))
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    if grown > GROWTH:
        wrong.append(f"{grown} bytes more memory")
    return CaseOutcome(name, "fuzz", "named or answered", wrong, facts=facts)


def fuzz_target(
    target: FuzzTarget, seconds: float, chance: random.Random
) -> tuple[dict[str, int], list[str]]:
    """Mutate inputs, and keep those that reach a new coverage edge."""
    watched = {module.__file__ for module in target.watched}
    seen: set[tuple[str, int, int]] = set()
    corpus: list[bytes] = []
    wrong: list[str] = []
    waiting = list(target.seeds)
    end = time.monotonic() + seconds
    count = 0
    while waiting or (time.monotonic() < end and len(wrong) < WRONG):
        data = waiting.pop() if waiting else mutate_input(chance.choice(corpus), corpus, chance)
        begun = time.monotonic()
        reached, error = _trace_input(target, data, watched)
        count += 1
        if error is None and time.monotonic() - begun > SLOW:
            error = f"took {time.monotonic() - begun:.1f} s"
        if error is not None:
            wrong.append(f"{error}: {data[:4096].hex()}")
        if not corpus or not reached <= seen:
            seen |= reached
            corpus.append(data)
    return {"inputs": count, "lines": len(seen), "kept": len(corpus)}, wrong


def _trace_input(
    target: FuzzTarget, data: bytes, watched: set[str | None]
) -> tuple[set[CoverageEdge], str | None]:
    def read() -> None:
        with contextlib.suppress(*target.refusals):
            target.read(data)

    reached, error = trace_edges(read, watched)
    return reached, f"{type(error).__name__} {error}" if error else None


def mutate_input(data: bytes, corpus: Sequence[bytes], chance: random.Random) -> bytes:
    """Return a mutation of an input."""
    found = bytearray(data)
    for _ in range(1 << chance.randrange(4)):
        at = chance.randrange(len(found) + 1)
        size = min(chance.choice((1, 1, 2, 4, 8, 64)), len(found) - at)
        match chance.randrange(6):
            case 0:
                found[at : at + size] = chance.randbytes(size)
            case 1 if at < len(found):
                found[at] ^= 1 << chance.randrange(8)
            case 2:
                del found[at : at + size]
            case 3:
                found[at:at] = chance.choice(_WORDS)
            case 4:
                found[at:at] = found[at : at + size] * chance.choice((1, 2, 50))
            case _:
                other = chance.choice(corpus)
                start = chance.randrange(len(other) + 1)
                found[at : at + size] = other[start : start + size]
    return bytes(found[: 1 << 21])


# -- the targets


def _offer_target() -> FuzzTarget:
    seed = {
        "attempt_id": "a" * 24,
        "firmware_id": "b" * 24,
        "version": "1.2.3-rc.1",
        "checksum": "c" * 64,
        "size": 4096,
        "download_url": "/firmwares/x/download?attempt=y",
        "required": False,
        "not_before": 1,
        "not_after": 2,
        "poll_after_s": 60,
        "server_time": 1,
        "manifest": {"payload": "", "payloadType": "", "signatures": []},
    }

    def read(data: bytes) -> None:
        doc = _parse_json(data)
        offer.check_offer(doc)
        manifest.unsigned_fields(doc, builds.DEVICE)

    refusals = (offer.OfferError, refused.Refused, _NotJson)
    return FuzzTarget(
        [json.dumps(seed).encode()], read, refusals, (offer, manifest, shapes, versions)
    )


def _manifest_target() -> FuzzTarget:
    fields = {
        "checksum": "c" * 64,
        "core": "d" * 64,
        "device_type": builds.DEVICE,
        "issued_at": 1,
        "expires_at": 2,
        "min_version": "0.0.0-0",
        "required": False,
        "size": 4096,
        "version": "1.2.3",
    }
    payload = manifest.encode(fields)
    envelope = dsse.pack_envelope(payload, [("0" * 16, bytes(384))]).encode()

    def read(data: bytes) -> None:
        if data[:1] == b"{" and b"payloadType" in data[:64] + data[-200:]:
            manifest.unpack_envelope(_parse_json(data))
            dsse.unpack_envelope(data.decode("utf-8", "replace"))
        found = manifest.decode(data)
        manifest.check_rules(found, builds.DEVICE, "1.0.0", None, 1, 1 << 21)

    refusals = (refused.Refused, BeaconOtaError, _NotJson)
    return FuzzTarget([payload, envelope], read, refusals, (manifest, dsse, shapes, versions))


def _report_target() -> FuzzTarget:
    seed = {
        "firmware_version": "1.1.0",
        "update_status": "failed",
        "updated_at": 1_800_000_000,
        "previous_version": "1.0.0",
        "attempt_id": "a" * 24,
        "firmware_id": "b" * 24,
        "image_sha256": "c" * 64,
        "stage": "verify",
        "code": "checksum",
        "detail": "x",
        "journal": [[1, 2, "boot", "crash", "d"]],
    }
    seeds = [json.dumps({**seed, "update_status": word}).encode() for word in report.STATUSES]
    return FuzzTarget(
        seeds,
        report_parser.parse_report,
        (BeaconOtaError,),
        (report, report_parser, shapes, versions),
    )


def _upload_target() -> FuzzTarget:
    edge = "edge"
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it logs every byte
    fields = {"device_type": builds.DEVICE, "version": "1.0.0", "required": "true"}
    parts = [
        f'--{edge}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = f'--{edge}\r\nContent-Disposition: form-data; name="binary"; filename="x"\r\n\r\n'
    body = b"".join([*parts, head.encode(), _build_small_release(), f"\r\n--{edge}--\r\n".encode()])

    def read(data: bytes) -> None:
        file = io.BytesIO()
        form = multipart.MultipartForm(
            f"multipart/form-data; boundary={edge}", "binary", file, 1 << 21
        )
        for at in range(0, len(data), 1000):
            form.feed(data[at : at + 1000])
        form.close()
        validate.examine_image(file, validate.read_claim(form), None, True, 1.0)

    watched = (multipart, validate, esp, appfs, littlefs, releases)
    return FuzzTarget([body], read, (BeaconOtaError,), watched)


def _image_target() -> FuzzTarget:
    small = _build_small_release()
    seeds = [small, builds.build_flash(small)[:0x20000], small[: builds.CORE_SIZE]]
    watched = (inspect, esp, appfs, littlefs, releases, combined, partitions)
    return FuzzTarget(seeds, inspect.inspect_file, (BeaconOtaError,), watched)


def _build_small_release() -> bytes:
    """Return a minimal release."""
    info = appfs.AppInfo(
        "1.0.0", builds.DEVICE, hashlib.sha256(builds.synthetic_core()).hexdigest(), insecure=True
    )
    files = {appfs.INFO: info.pack(), "main.mpy": b"M\x06\x00\x1f"}
    return releases.join_core_and_app(builds.synthetic_core(), appfs.pack_app(files))


class _NotJson(ValueError):
    """Input that the JSON decoder refuses before the parser under test."""


def _parse_json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise _NotJson from None


TARGETS: dict[str, Callable[[], FuzzTarget]] = {
    "offers": _offer_target,
    "manifests": _manifest_target,
    "reports": _report_target,
    "uploads": _upload_target,
    "images": _image_target,
}
