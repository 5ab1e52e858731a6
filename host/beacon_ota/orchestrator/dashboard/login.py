"""Signing in: a token is shown once, and the browser gets a session for it."""

from functools import partial
from urllib.parse import parse_qsl, quote

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from beacon_ota.orchestrator.api import session
from beacon_ota.orchestrator.api.access import holder, service_of
from beacon_ota.orchestrator.dashboard.frame import HEADERS, Page, refusal, sent
from beacon_ota.orchestrator.db.tables import audit, sessions
from beacon_ota.orchestrator.http.problems import Problem


async def login(request: Request) -> Response:
    """Show the form, or take what was typed into it."""
    there = request.query_params.get("next", "")
    if request.method != "POST":
        return await _form(request, there)
    try:
        session.check_origin(request)
        given = await _fields(request)
        there, token = given.get("next", ""), given.get("token", "").strip()
        if not 0 < len(token) <= 128:
            raise Problem(401, "token_wrong", "that is no token")
        actor = await holder(request, token)
    except Problem as error:
        return await _form(request, there, error)
    service = service_of(request)
    now = service.clock.now()

    def work(conn: Connection) -> str:
        audit.append(conn, now, actor.name, "session.begun", actor.id)
        return sessions.create(conn, actor.id, now)

    answer = RedirectResponse(_inside(there), 303, HEADERS)
    session.begin(answer, request, await service.db.write(work))
    return answer


async def logout(request: Request) -> Response:
    """End the session."""
    secret = session.secret_of(request)
    if secret is not None:
        given = await _fields(request)
        try:
            session.check_csrf(request, secret, given.get("csrf", ""))
        except Problem as error:
            return await sent(request, None, partial(refusal, error))
        await service_of(request).db.write(sessions.remove, secret)
    answer = RedirectResponse("/login", 303, HEADERS)
    session.end(answer)
    return answer


async def _form(request: Request, there: str, error: Problem | None = None) -> Response:
    status = 200 if error is None else error.status
    values = {"next": _inside(there), "error": error}
    answer = await sent(request, None, lambda: Page("login.html", "Sign in", values, status=status))
    if error is not None:
        answer.headers.update(error.headers)
    return answer


async def _fields(request: Request) -> dict[str, str]:
    """Return the fields of a form, none of what is no form."""
    try:
        return dict(parse_qsl((await request.body()).decode("ascii"), max_num_fields=8))
    except ValueError:
        return {}


def _inside(there: str) -> str:
    """Return a path of ours, whatever was asked for."""
    if not there.startswith("/") or there.startswith(("//", "/\\", "/login")):
        return "/"
    return quote(there, safe="/?&=%:@!$'()*+,;.-_~")
