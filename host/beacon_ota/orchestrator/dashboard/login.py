"""Sign-in and sign-out: exchanges a token for a browser's session."""

from functools import partial
from urllib.parse import parse_qsl, quote

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from beacon_ota.orchestrator.api import session
from beacon_ota.orchestrator.api.access import authenticate_token
from beacon_ota.orchestrator.api.dependencies import service_of
from beacon_ota.orchestrator.dashboard.page_base import PAGE_HEADERS, Page, refusal_page, send_page
from beacon_ota.orchestrator.db.tables import audit, sessions
from beacon_ota.orchestrator.http.prefix import prefix_of
from beacon_ota.orchestrator.http.problems import Problem


async def handle_login(request: Request) -> Response:
    """Show the form, or sign in with the token that was entered."""
    there = request.query_params.get("next", "")
    if request.method != "POST":
        return await _show_form(request, there)
    try:
        session.check_origin(request)
        given = await _read_form(request)
        there, token = given.get("next", ""), given.get("token", "").strip()
        if not 0 < len(token) <= 128:
            raise Problem(401, "token_wrong", "that is no token")
        actor = await authenticate_token(request, token)
    except Problem as error:
        return await _show_form(request, there, error)
    service = service_of(request)
    now = service.clock.now()

    def write_session(conn: Connection) -> str:
        audit.append(conn, now, actor.name, "session.begun", actor.id)
        return sessions.create(conn, actor.id, now)

    answer = RedirectResponse(prefix_of(request.scope) + _own_path(there), 303, PAGE_HEADERS)
    session.set_session_cookie(answer, request, await service.db.write(write_session))
    return answer


async def handle_logout(request: Request) -> Response:
    """End the session."""
    secret = session.secret_of(request)
    if secret is not None:
        given = await _read_form(request)
        try:
            session.check_csrf(request, secret, given.get("csrf", ""))
        except Problem as error:
            return await send_page(request, None, partial(refusal_page, error))
        await service_of(request).db.write(sessions.remove, secret)
    answer = RedirectResponse(prefix_of(request.scope) + "/login", 303, PAGE_HEADERS)
    session.clear_session_cookie(answer, request)
    return answer


async def _show_form(request: Request, there: str, error: Problem | None = None) -> Response:
    status = 200 if error is None else error.status
    values = {"next": _own_path(there), "error": error}
    answer = await send_page(
        request, None, lambda: Page("login.html", "Sign in", values, status=status)
    )
    if error is not None:
        answer.headers.update(error.headers)
    return answer


async def _read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form, {} for a malformed one."""
    try:
        return dict(parse_qsl((await request.body()).decode("ascii"), max_num_fields=8))
    except ValueError:
        return {}


def _own_path(there: str) -> str:
    """Return a path on this server, "/" for any other address."""
    if not there.startswith("/") or there.startswith(("//", "/\\", "/login")):
        return "/"
    return quote(there, safe="/?&=%:@!$'()*+,;.-_~")
