"""Builds the API's answers: JSON, and problem documents for refusals."""

import json
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from beacon_ota.errors import BeaconOtaError
from beacon_ota.orchestrator.db.tables import Fields
from beacon_ota.orchestrator.http import problems
from beacon_ota.orchestrator.http.problems import Problem

_CODES = {404: "not_found", 405: "method_not_allowed"}


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a JSON answer."""
    return Response(
        json.dumps(value, separators=(",", ":")),
        status,
        headers=headers,
        media_type="application/json",
    )


def listing_response(name: str, rows: list[Fields], **more: Any) -> Response:
    """Return a listing: the rows under their name, and more fields about the page."""
    return json_response({name: rows, **more})


def install_error_handlers(app: FastAPI) -> None:
    """Make the application answer every error with a problem document."""

    @app.exception_handler(BeaconOtaError)
    async def handle_named_error(request: Request, error: BeaconOtaError) -> Response:
        return problem_response(error, request)

    @app.exception_handler(RequestValidationError)
    async def handle_invalid_request(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        message = f"{where}: {first['msg']}"
        return problem_response(
            Problem(422, "request_invalid", message, found=where or "body"), request
        )

    @app.exception_handler(HTTPException)
    async def handle_http_error(request: Request, error: HTTPException) -> Response:
        code = _CODES.get(error.status_code, "http")
        headers = dict(error.headers or {})  # "allow" of a 405
        refused = Problem(error.status_code, code, str(error.detail), headers=headers)
        return problem_response(refused, request)

    @app.exception_handler(Exception)
    async def handle_defect(request: Request, _error: Exception) -> Response:
        failed = Problem(500, "internal", "the orchestrator failed; the log says how")
        return problem_response(failed, request)


def problem_response(error: BeaconOtaError, request: Request) -> Response:
    """Return the problem document of an error, and count it."""
    request.app.state.service.counts.problems[error.code] += 1
    return Response(
        problems.problem_document(error),
        problems.status_of(error),
        headers=problems.headers_of(error),
        media_type=problems.MEDIA_TYPE,
    )
