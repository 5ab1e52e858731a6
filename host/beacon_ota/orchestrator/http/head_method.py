"""Middleware that answers HEAD wherever there is GET: with the same head, and no body."""

import asyncio

from beacon_ota.orchestrator.http.asgi import App, Message, Receive, Scope, Send


class HeadMethodMiddleware:
    """Calls the application with GET and sends the head of its answer.

    After the head, the application is told that the client has disconnected: a stream would
    otherwise never end.
    """

    def __init__(self, app: App):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        answered = asyncio.Event()

        async def head_only(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b""})
                answered.set()

        async def until_answered() -> Message:
            if answered.is_set():
                return {"type": "http.disconnect"}
            ended = asyncio.ensure_future(answered.wait())
            given = asyncio.ensure_future(receive())
            try:
                await asyncio.wait((ended, given), return_when=asyncio.FIRST_COMPLETED)
                if answered.is_set() or not given.done():
                    return {"type": "http.disconnect"}
                return given.result()
            finally:
                ended.cancel()
                given.cancel()

        await self._app({**scope, "method": "GET"}, until_answered, head_only)
