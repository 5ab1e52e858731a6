"""Bounds the bodies that the administrators' application reads, in bytes and in time."""

from beacon_ota.orchestrator.http import asgi, problems
from beacon_ota.orchestrator.http.asgi import App, ClientDisconnected, Message, Receive, Scope, Send
from beacon_ota.orchestrator.http.problems import Problem
from beacon_ota.orchestrator.limits import LIMITS

_UPLOAD_PATH = "/api/firmwares/upload"  # bounded where it is taken apart


class BodySizeLimitMiddleware:
    """Reads a request's body before the application sees the request."""

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
