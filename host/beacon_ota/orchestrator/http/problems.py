"""Problem documents (RFC 9457) for refusals, each with a stable code."""

import json
from http import HTTPStatus

from beacon_ota.errors import (
    BeaconOtaError,
    DeniedError,
    InputError,
    ReachError,
    UsageError,
)

MEDIA_TYPE = "application/problem+json"

# HTTP status by code, where the class of the error does not determine it.
STATUS = {
    "not_multipart": 415,
    "image_too_large": 413,
    "body_too_large": 413,
    "body_stalled": 408,
    "version_taken": 409,
    "followers_of_token": 429,
    "storage": 503,
}

# Seconds until another try makes sense, for errors without headers of their own.
RETRY_AFTER = {"followers_of_token": "10"}


class Problem(BeaconOtaError):
    """A refusal with its own HTTP status and headers."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        found: object = None,
        expected: object = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(code, message, found=found, expected=expected)
        self.status = status
        self.headers = headers or {}


# The commands that list objects.
_LISTED = {name: name for name in ("beacon", "mirror", "rollout", "site", "token")} | {
    "firmware": "release"
}


def not_found(what: str, name: str) -> Problem:
    """Return the refusal (404) for an object that does not exist."""
    listed = _LISTED.get(what)
    return Problem(
        404,
        f"{what}_unknown",
        f"there is no {what} {name!r}",
        found=name,
        expected=listed and f"one of `beacon-ota {listed} list`",
    )


def status_of(error: BeaconOtaError) -> int:
    """Return the HTTP status that an error answers with."""
    if isinstance(error, Problem):
        return error.status
    if error.code in STATUS:
        return STATUS[error.code]
    if isinstance(error, InputError):
        return 422
    if isinstance(error, UsageError):
        return 409
    if isinstance(error, DeniedError):
        return 403
    return 503 if isinstance(error, ReachError) else 500


def headers_of(error: BeaconOtaError) -> dict[str, str]:
    """Return the headers that an error answers with."""
    if isinstance(error, Problem):
        return error.headers
    after = RETRY_AFTER.get(error.code)
    return {} if after is None else {"retry-after": after}


def problem_document(error: BeaconOtaError, **more: object) -> bytes:
    """Return the JSON document of a refusal; ``more`` adds fields such as ``server_time``."""
    status = status_of(error)
    fields = {
        "type": f"urn:beacon-ota:problem:{error.code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        **error.as_dict(),
        **more,
    }
    return json.dumps(fields, default=str).encode()
