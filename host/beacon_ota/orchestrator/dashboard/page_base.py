"""The base of every page: request, rendering of the template, answer."""

import hashlib
import json
import mimetypes
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import jinja2
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from beacon_ota import __version__
from beacon_ota.errors import BeaconOtaError
from beacon_ota.orchestrator.api import session
from beacon_ota.orchestrator.api.access import authenticate_actor
from beacon_ota.orchestrator.api.dependencies import service_of
from beacon_ota.orchestrator.core.engine import Engine
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.dashboard import messages
from beacon_ota.orchestrator.db.tables import Fields, events
from beacon_ota.orchestrator.db.tables.tokens import ROLES, Actor
from beacon_ota.orchestrator.http import problems
from beacon_ota.orchestrator.http.background import BackgroundPool
from beacon_ota.orchestrator.http.prefix import prefix_of
from beacon_ota.orchestrator.http.problems import Problem

T = TypeVar("T")
FOLDER = Path(__file__).parent

PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=()",
    "cache-control": "no-store",
}
STATIC_FILES = ("app.css", "app.js", "icon.svg")
THEMES = ("light", "dark")

# One thread: pages are rendered one at a time, since they share the GIL with the beacons' calls.
_RENDERING = BackgroundPool("dashboard")


@dataclass(frozen=True, slots=True)
class PageRequest:
    """The request for a page, with the parts of the orchestrator that a page reads."""

    service: Service
    engine: Engine
    actor: Actor
    now: float  # UTC seconds, of the orchestrator's clock
    path: dict[str, str]
    query: dict[str, str]

    @property
    def operator(self) -> bool:
        """Whether controls are shown. The API checks the role; a mirror has no controls."""
        return self.actor.role in ROLES[1:] and not self.service.settings.upstream

    @property
    def admin(self) -> bool:
        """Whether the administrators' pages are shown."""
        return self.actor.role == "admin"

    def read(self, work: Callable[..., T], *args: Any) -> T:
        """Run a function on the database; pages are made in a thread, where that may wait."""
        return self.service.db.read_now(work, *args)

    def number(self, name: str, default: int = 0, most: int = 10**9) -> int:
        """Return a number of the query, the default if it is no number."""
        text = self.query.get(name, "")
        if not (text.isascii() and text.isdecimal()):
            return default
        return min(int(text), most) if len(text) <= 20 else most  # int() raises for 5,000 digits


@dataclass(frozen=True, slots=True)
class Page:
    """A template and its values.

    Attributes:
        live: topics (``live.topics_of``) on which the page depends; ``*`` is every change.
    """

    template: str
    title: str
    values: Fields = field(default_factory=dict)
    live: str = ""
    status: int = 200


async def show_page(request: Request, page: Callable[[PageRequest], Page]) -> Response:
    """Answer with a page; redirect to the login without a session."""
    try:
        actor = await authenticate_actor(request)
    except Problem as error:
        if error.status != 401 or "authorization" in request.headers:
            return await send_page(request, None, partial(refusal_page, error))
        return _redirect_to_login(request)
    service = service_of(request)
    ask = PageRequest(
        service=service,
        engine=request.app.state.engine,
        actor=actor,
        now=service.clock.now(),
        path=dict(request.path_params),
        query=dict(request.query_params),
    )
    return await send_page(request, ask, lambda: page(ask))


async def send_page(
    request: Request, ask: PageRequest | None, make_page: Callable[[], Page]
) -> Response:
    """Make and render a page in the dashboard's thread, and answer with it."""
    service = service_of(request)
    secret = session.secret_of(request)
    prefix = prefix_of(request.scope)
    theme = request.cookies.get("theme", "")
    context: Fields = {
        "ask": ask,
        "csrf": session.csrf_of(secret) if secret and ask else "",
        "theme": theme if theme in THEMES else "",
        "insecure": service.settings.insecure,
        "upstream": service.settings.upstream,
        "uplink": service.mirror,
        "now": service.clock.now(),
        "scale": service.clock.scale,
        "path": request.url.path,
        "prefix": prefix,
    }

    def render_page() -> tuple[str, int]:
        context["event"] = service.db.read_now(events.last_id) if ask else 0
        try:
            page = make_page()
        except BeaconOtaError as error:
            page = refusal_page(error)
        values = {**context, **page.values, "title": page.title, "live": page.live}
        text = load_templates().get_template(page.template).render(values)
        return put_below(text, prefix), page.status

    text, status = await _RENDERING.run(request.is_disconnected, render_page)
    return Response(text, status, PAGE_HEADERS, "text/html")


# An attribute of a page with an address on this server. What others have written is escaped, and
# holds no quotation mark that could begin an attribute.
_OWN_ADDRESS = re.compile(r'(\s(?:href|src|action|data-href|data-api)=")/(?!/)')


def put_below(text: str, prefix: str) -> str:
    """Return a page whose addresses begin with a prefix."""
    return _OWN_ADDRESS.sub(rf"\g<1>{prefix}/", text) if prefix else text


def refusal_page(error: BeaconOtaError) -> Page:
    """Return the page for an error."""
    status = problems.status_of(error)
    return Page("refusal.html", "Not shown", {"error": error}, status=status)


def _redirect_to_login(request: Request) -> Response:
    """Redirect to the login, which leads back to the requested page."""
    if request.headers.get("x-refresh"):
        return Response(status_code=401, headers=PAGE_HEADERS)  # an open page refreshes itself
    there = request.url.path
    if request.url.query:
        there += "?" + request.url.query
    to = "/login" if there == "/" else "/login?next=" + quote(there, safe="/")
    return RedirectResponse(prefix_of(request.scope) + to, 303, PAGE_HEADERS)


async def serve_static(request: Request) -> Response:
    """Answer with a static file; its address changes with its content, so it is cached for ever."""
    name = request.path_params["name"]
    if name not in STATIC_FILES:
        raise Problem(404, "not_found", "no such file")
    fixed = request.query_params.get("v") == _static_digest(name)
    headers = {
        **PAGE_HEADERS,
        "cache-control": "public, max-age=31536000, immutable" if fixed else "no-cache",
    }
    media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return Response(_read_static(name), headers=headers, media_type=media_type)


@cache
def _read_static(name: str) -> bytes:
    return (FOLDER / "static" / name).read_bytes()


@cache
def _static_digest(name: str) -> str:
    return hashlib.sha256(_read_static(name)).hexdigest()[:16]


@cache
def load_templates() -> jinja2.Environment:
    """Return the templates: everything is escaped, an undefined name is an error."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {
        "iso": messages.format_iso,
        "utc": messages.format_utc,
        "span": messages.format_duration,
        "size": messages.format_size,
        "share": messages.format_share,
        "thousands": lambda number: f"{number:,}",
        "part": lambda text: quote(str(text), safe=""),
        "pretty": lambda value: json.dumps(value, indent=2, sort_keys=True),
        "plural": messages.format_plural,
        "halt_reason": messages.describe_halt,
    }
    made.globals |= {
        "static": lambda name: f"/static/{name}?v={_static_digest(name)}",
        "link": build_link,
        "stack": render_stacked_bar,
        "VERSION": __version__,
    }
    return made


def build_link(path: str, **query: Any) -> str:
    """Return an address with its query, without parameters that are None or empty."""
    given = {key: value for key, value in query.items() if value not in (None, "")}
    return f"{path}?{urlencode(given)}" if given else path


def render_stacked_bar(parts: list[tuple[str, float]], total: float | None = None) -> Markup:
    """Return a bar of coloured parts as SVG, because the policy forbids style attributes.

    Args:
        parts: class and size of each part.
        total: size of the whole bar; by default the sum.
    """
    whole = (sum(size for _, size in parts) if total is None else total) or 1
    at = 0.0
    drawn = []
    for name, size in parts:
        if size:
            width = 100 * size / whole
            drawn.append(
                Markup('<rect class="f-{}" x="{:.3f}" width="{:.3f}" height="10"/>').format(
                    name, at, width
                )
            )
            at += width
    frame = '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
    return Markup(frame) + Markup().join(drawn) + Markup("</svg>")
