"""The dashboard: the fleet in a browser, live, and the levers of its rollouts.

Pages are rendered here, by plain functions of what the orchestrator has in memory and in its
tables; the one script keeps them up to date and asks before it does what cannot be undone. What
it does goes through the API, with the rights of whoever signed in.

Nothing of this is imported before the first page is asked for, and pages are rendered one at a
time in a thread of their own, so that beacons do not wait for them.

frame.py       how a page is asked for, rendered, sent
login.py       tokens for sessions
live.py        what has changed, pushed
fleet.py       the fleet as rows; selection.py: which of them
words.py       events as sentences
overview.py, beacons.py, rollouts.py, releases.py, failures.py, logs.py    the pages
"""

import asyncio
import importlib

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

# Path -> module and function. A page is a function of a frame.Ask; a handler takes the request.
PAGES = {
    "/": ("overview", "page"),
    "/beacons": ("beacons", "listing"),
    "/beacons/{beacon_id}": ("beacons", "page"),
    "/rollouts": ("rollouts", "listing"),
    "/rollouts/{rollout_id}": ("rollouts", "page"),
    "/releases": ("releases", "listing"),
    "/releases/{firmware_id}": ("releases", "page"),
    "/failures": ("failures", "page"),
    "/activity": ("logs", "activity"),
    "/webhooks": ("logs", "hooks"),
    "/audit": ("logs", "audit_log"),
}
HANDLERS = {
    "/login": ("login", "login", ["GET", "POST"]),
    "/logout": ("login", "logout", ["POST"]),
    "/live": ("live", "live", ["GET"]),
    "/static/{name}": ("frame", "static", ["GET"]),
}


def routes() -> list[Route]:
    """Return the dashboard's routes; what is behind them is imported when it is asked for."""

    def page(module: str, name: str):
        async def endpoint(request: Request) -> Response:
            frame = await _module("frame")
            return await frame.show(request, getattr(await _module(module), name))

        return endpoint

    def handler(module: str, name: str):
        async def endpoint(request: Request) -> Response:
            return await getattr(await _module(module), name)(request)

        return endpoint

    found = [Route(path, page(*where)) for path, where in PAGES.items()]
    for path, (module, name, methods) in HANDLERS.items():
        found.append(Route(path, handler(module, name), methods=methods))
    return found


async def _module(name: str):
    return await asyncio.to_thread(importlib.import_module, f"{__name__}.{name}")
