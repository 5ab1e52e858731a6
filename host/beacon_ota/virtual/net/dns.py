"""Answers to DNS and mDNS questions about the names of a virtual network."""

import ipaddress
import struct
from typing import Protocol

A, PTR, SRV, ANY = 1, 12, 33, 255
IN = 1
TTL = 120
NAME_MAX = 255


class NameSource(Protocol):
    """Where names lead, see :class:`beacon_ota.virtual.net.network.Network`."""

    services: dict[str, tuple[str, int]]

    def lookup_name(self, name: str) -> str | None:
        """Return the IPv4 address of a name."""


def answer_query(query: bytes, names: NameSource, *, silent: bool) -> bytes | None:
    """Return the reply to one question, None when there is nothing to say.

    Args:
        query: a DNS message.
        names: what is known.
        silent: do not answer what is unknown (multicast); else answer "no such name".
    """
    try:
        number, flags, questions = struct.unpack_from(">HHH", query)
        if flags & 0x8000 or questions != 1:
            return None
        name, at = _parse_name(query, 12)
        kind, _ = struct.unpack_from(">HH", query, at)
    except (struct.error, ValueError):
        return None
    question = query[12 : at + 4]
    records = _find_records(name, kind, names)
    if not records and silent:
        return None
    code = 0x8400 if records else 0x8403
    head = struct.pack(">HHHHHH", number, code, 1, len(records), 0, 0)
    return head + question + b"".join(records)


def _find_records(name: str, kind: int, names: NameSource) -> list[bytes]:
    address = names.lookup_name(name)
    if address is not None and kind in (A, ANY):
        return [_pack_record(name, A, ipaddress.IPv4Address(address).packed)]
    service = name.removesuffix(".local")
    if service in names.services and kind in (PTR, ANY):
        host, port = names.services[service]
        instance = f"orchestrator.{name}"
        found = [
            _pack_record(name, PTR, _pack_name(instance)),
            _pack_record(instance, SRV, struct.pack(">HHH", 0, 0, port) + _pack_name(host)),
        ]
        return found + _find_records(host, A, names)
    return []


def _pack_record(name: str, kind: int, data: bytes) -> bytes:
    return _pack_name(name) + struct.pack(">HHIH", kind, IN, TTL, len(data)) + data


def _pack_name(name: str) -> bytes:
    parts = [part.encode()[:63] for part in name.split(".") if part]
    return b"".join(bytes([len(part)]) + part for part in parts) + b"\0"


def _parse_name(message: bytes, at: int) -> tuple[str, int]:
    """Read a name without compression (ValueError when there is none)."""
    parts, length = [], 0
    while True:
        if at >= len(message):
            raise ValueError("a name without end")
        size = message[at]
        at += 1
        if not size:
            return ".".join(parts).lower(), at
        length += size + 1
        if size > 63 or length > NAME_MAX or at + size > len(message):
            raise ValueError("not a plain name")
        parts.append(message[at : at + size].decode("utf-8", "replace"))
        at += size
