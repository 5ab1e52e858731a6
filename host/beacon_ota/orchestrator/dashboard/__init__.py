"""The dashboard: web pages that show the fleet live, and control its rollouts.

Pages are rendered by plain functions from memory and tables. The one script keeps them up to date,
and asks before it makes a change that cannot be undone. Changes go through the API, with the rights
of the signed-in user.

No page module is imported before the first request for a page, and pages are rendered one at a time
in a thread, so that beacons do not wait for them.

page_base.py   request, template and answer of a page
login.py       exchanges tokens for sessions
live.py        pushes what has changed
fleet.py       the fleet as rows; selection.py: filters
messages.py    numbers, times and events in words
gauges.py      how far gates are from passing or tripping
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
    """Return the dashboard's routes; their modules are imported with the first request."""

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
