"""The session cookie of a browser, which no script and no other site can use.

The cookie is HttpOnly and SameSite=Strict, and Secure over TLS. A request that changes something
also needs the CSRF token of the session's own pages, and must not come from another site's page.
"""

import hashlib
import hmac
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection
from starlette.responses import Response

from beacon_ota.orchestrator.db.tables.sessions import SESSION_LIFETIME_S
from beacon_ota.orchestrator.http.prefix import prefix_of
from beacon_ota.orchestrator.http.problems import Problem

CSRF_HEADER = "x-csrf-token"
SAFE_METHODS = frozenset(("GET", "HEAD"))
_PLAIN, _SECURE = "beacon_ota", "__Host-beacon_ota"
_SECURE_BELOW = "__Secure-beacon_ota"  # below a path: __Host- would be the whole host's


def secret_of(request: HTTPConnection) -> str | None:
    """Return the secret in the session cookie, None without one."""
    names = (_SECURE_BELOW if prefix_of(request.scope) else _SECURE, _PLAIN)
    found = next(filter(None, map(request.cookies.get, names)), None)
    return found if found and len(found) <= 128 else None


def csrf_of(secret: str) -> str:
    """Return the CSRF token of a session: a digest, which does not reveal the secret."""
    return hashlib.sha256(f"csrf\n{secret}".encode()).hexdigest()


def check_csrf(request: HTTPConnection, secret: str, given: str | None = None) -> None:
    """Refuse a change that does not come from the session's own pages.

    Args:
        given: the CSRF token, if it is not in its header.

    Raises:
        Problem: 403 ``csrf``.
    """
    check_origin(request)
    given = request.headers.get(CSRF_HEADER, "") if given is None else given
    if not hmac.compare_digest(given.encode(), csrf_of(secret).encode()):
        raise Problem(403, "csrf", f"this needs the page's own {CSRF_HEADER} header")


def check_origin(request: HTTPConnection) -> None:
    """Refuse a request that, as the browser says, comes from another site's page (403 ``csrf``)."""
    site = request.headers.get("sec-fetch-site", "same-origin")
    origin = request.headers.get("origin")
    if site not in ("same-origin", "none") or (
        origin is not None and _host_of(origin) != request.headers.get("host", "")
    ):
        raise Problem(403, "csrf", "a page of another site asked for this", found=origin or site)


def _host_of(origin: str) -> str | None:
    """Return host and port of an origin, None if it is malformed."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def set_session_cookie(response: Response, request: HTTPConnection, secret: str) -> None:
    """Set the session cookie."""
    secure = _over_tls(request)
    prefix = prefix_of(request.scope)
    name = (_SECURE_BELOW if prefix else _SECURE) if secure else _PLAIN
    response.set_cookie(
        name,
        secret,
        max_age=int(SESSION_LIFETIME_S),
        path=prefix or "/",
        secure=secure,
        httponly=True,
        samesite="strict",
    )


def clear_session_cookie(response: Response, request: HTTPConnection) -> None:
    """Remove the session cookie."""
    prefix = prefix_of(request.scope)
    for name in (_PLAIN, _SECURE_BELOW if prefix else _SECURE):
        response.delete_cookie(
            name, path=prefix or "/", secure=name != _PLAIN, httponly=True, samesite="strict"
        )


def _over_tls(request: HTTPConnection) -> bool:
    """Tell whether the browser uses TLS, with this server or with a proxy in front of it."""
    return request.url.scheme == "https" or request.headers.get("origin", "").startswith("https://")
