"""What a beacon signs, and how it knows the orchestrator's answer."""

import hashlib
import hmac
import secrets

from beacon_ota.wire import auth

_EMPTY = hashlib.sha256(b"").hexdigest()


def sign_request(
    beacon_id: str,
    key: bytes,
    method: str,
    target: str,
    ts: int,
    *,
    body: bytes = b"",
    host: str = "orchestrator.local",
    more: str = "",
    keep: bool = False,
) -> tuple[bytes, str]:
    """Return a whole request, ready to be sent, and its nonce.

    Args:
        ts: UTC seconds.
        more: further header lines, each with its line end.
        keep: leave the connection open after the answer.
    """
    nonce = secrets.token_hex(8)
    digest = hashlib.sha256(body).hexdigest() if body else _EMPTY
    text = auth.request_text(method, target, beacon_id, ts, nonce, digest)
    value = auth.build_header(beacon_id, ts, nonce, hmac.digest(key, text, "sha256").hex())
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    close = "" if keep else "Connection: close\r\n"
    head = (
        f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{length}{more}{close}"
        f"Authorization: {value}\r\n\r\n"
    )
    return head.encode() + body, nonce


def is_authentic(
    key: bytes, nonce: str, status: int, digest: str | None, body: bytes, seal: bytes
) -> bool:
    """Tell whether the orchestrator made this answer to the request with this nonce.

    Args:
        digest: checksum of the file, for a download; else that of ``body`` is taken.
        seal: the answer's ``X-Beacon-Mac``.
    """
    found = digest or (hashlib.sha256(body).hexdigest() if body else _EMPTY)
    text = auth.answer_text(nonce, status, found)
    return hmac.compare_digest(hmac.digest(key, text, "sha256").hex().encode(), seal)
