"""Middleware that adds security headers to every answer of the administrators' side."""

from beacon_ota.orchestrator.http.asgi import App, Header, Message, Receive, Scope, Send

# no-store: some answers contain keys, tokens or secrets, and roles are checked for each request.
_DEFAULTS: tuple[Header, ...] = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
_STREAM = b"text/event-stream"
_UNBUFFERED: Header = (b"x-accel-buffering", b"no")  # a proxy hands on each event as it comes


class SecureHeadersMiddleware:
    """Adds each header of ``_DEFAULTS`` that the answer does not have itself."""

    def __init__(self, app: App):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_defaults(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = list(message.get("headers", ()))
                names = {name.lower() for name, _ in given}
                given += [one for one in _DEFAULTS if one[0] not in names]
                if any(
                    name.lower() == b"content-type" and _STREAM in value for name, value in given
                ):
                    given.append(_UNBUFFERED)
                message = {**message, "headers": given}
            await send(message)

        await self._app(scope, receive, with_defaults)
