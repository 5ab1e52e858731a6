"""The dashboard: the fleet in a browser, live, and the levers of its rollouts.

Pages are rendered here, by plain functions of what the orchestrator has in memory and in its
tables; the one script keeps them up to date and asks before it does what cannot be undone. What
it does goes through the API, with the rights of whoever signed in.

Nothing of this is imported before the first page is asked for, and pages are rendered one at a
time in a thread of their own, so that beacons do not wait for them.

page_base.py   how a page is asked for, rendered, sent
login.py       tokens for sessions
live.py        what has changed, pushed
fleet.py       the fleet as rows; selection.py: which of them
messages.py       events as sentences
overview.py, beacons.py, rollouts.py, releases.py, failures.py, logs.py    the pages
"""

import asyncio
import importlib

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

# Path -> module and function. A page function takes a page_base.PageRequest, a handler takes the
# HTTP request.
PAGES = {
    "/": ("overview", "show_overview"),
    "/beacons": ("beacons", "list_beacons"),
    "/beacons/{beacon_id}": ("beacons", "show_beacon"),
    "/rollouts": ("rollouts", "list_rollouts"),
    "/rollouts/{rollout_id}": ("rollouts", "show_rollout"),
    "/releases": ("releases", "list_releases"),
    "/releases/{firmware_id}": ("releases", "show_release"),
    "/failures": ("failures", "show_failures"),
    "/activity": ("logs", "show_activity"),
    "/webhooks": ("logs", "show_webhooks"),
    "/audit": ("logs", "show_audit_log"),
}
HANDLERS = {
    "/login": ("login", "handle_login", ["GET", "POST"]),
    "/logout": ("login", "handle_logout", ["POST"]),
    "/live": ("live", "follow_changes", ["GET"]),
    "/static/{name}": ("page_base", "serve_static", ["GET"]),
}


def dashboard_routes() -> list[Route]:
    """Return the dashboard's routes; what is behind them is imported when it is asked for."""

    def page_endpoint(module: str, name: str):
        async def endpoint(request: Request) -> Response:
            page_base = await _import_page("page_base")
            return await page_base.show_page(request, getattr(await _import_page(module), name))

        return endpoint

    def handler_endpoint(module: str, name: str):
        async def endpoint(request: Request) -> Response:
            return await getattr(await _import_page(module), name)(request)

        return endpoint

    found = [Route(path, page_endpoint(*where)) for path, where in PAGES.items()]
    for path, (module, name, methods) in HANDLERS.items():
        found.append(Route(path, handler_endpoint(module, name), methods=methods))
    return found


async def _import_page(name: str):
    return await asyncio.to_thread(importlib.import_module, f"{__name__}.{name}")
