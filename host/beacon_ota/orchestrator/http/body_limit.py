"""Middleware that bounds the request bodies of the administrators' API in bytes and in time.

Starlette's RequestBodyLimitMiddleware bounds bytes only: 256 KiB, sent a byte a minute, would
occupy a handler for 182 days. Here at most ``LIMITS.body_stall`` (20 s) pass without a byte.
"""

from beacon_ota.orchestrator.http import asgi, problems
from beacon_ota.orchestrator.http.asgi import App, ClientDisconnected, Message, Receive, Scope, Send
from beacon_ota.orchestrator.http.problems import Problem
from beacon_ota.orchestrator.limits import LIMITS

_UPLOAD_PATH = "/api/firmwares/upload"  # releases.upload bounds it


class BodySizeLimitMiddleware:
    """Reads the whole request body, then calls the application with it."""

    def __init__(self, app: App):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == _UPLOAD_PATH or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        try:
            data = await asgi.read_body(scope, receive, LIMITS.admin_body)
        except ClientDisconnected:
            return
        except Problem as error:
            await asgi.send_response(
                send, error.status, problems.problem_document(error), (asgi.PROBLEM_TYPE,)
            )
            return
        read = False

        async def replay_body() -> Message:
            nonlocal read
            if read:
                return await receive()
            read = True
            return {"type": "http.request", "body": data, "more_body": False}

        await self._app(scope, replay_body, send)


def _has_body(scope: Scope) -> bool:
    names = {name for name, _ in scope["headers"]}
    return b"content-length" in names or b"transfer-encoding" in names
