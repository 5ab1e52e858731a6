"""Authenticates administrators by bearer token or session, and checks their role.

Wrong tokens are delayed and counted by address; a right token is never refused for them.
"""

import asyncio
from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import Connection

from beacon_ota.orchestrator.api import session
from beacon_ota.orchestrator.api.dependencies import service_of
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db.connection import StorageError
from beacon_ota.orchestrator.db.tables import sessions, tokens
from beacon_ota.orchestrator.db.tables.tokens import MIRROR, ROLES, Actor
from beacon_ota.orchestrator.http import asgi
from beacon_ota.orchestrator.http.connections import ADMINISTRATOR, network_of
from beacon_ota.orchestrator.http.problems import Problem
from beacon_ota.orchestrator.http.throttle import Throttle
from beacon_ota.orchestrator.limits import LIMITS

_BEARER_CHALLENGE = {"www-authenticate": "Bearer"}


class RequireRole:
    """A dependency that returns the actor of a request, if its role is high enough.

    Args:
        role: the least role.
        stops: the endpoint stops a rollout (see ``authenticate_actor``).
    """

    def __init__(self, role: str, stops: bool = False):
        self._rank = ROLES.index(role)
        self._stops = stops

    async def __call__(self, request: Request) -> Actor:
        actor = await authenticate_actor(request, self._stops)
        if actor.role not in ROLES[self._rank :]:
            raise Problem(
                403,
                "role_too_low",
                "your role does not allow this",
                found=actor.role,
                expected=ROLES[self._rank],
            )
        return actor


async def authenticate_actor(request: Request, stops: bool = False) -> Actor:
    """Return the actor of a request: by bearer token, or by the session of a browser.

    Args:
        stops: the request stops a rollout. While the database does not answer, tokens and sessions
            that were valid seconds ago are accepted from memory for that.

    Raises:
        Problem: ``token_missing``, those of :func:`authenticate_token`, ``session_over``, ``csrf``.
    """
    token = token_of(request)
    if token is not None:
        return await authenticate_token(request, token, stops)
    secret = _session_secret_of(request)
    if secret is None:
        raise Problem(
            401,
            "token_missing",
            "this needs an Authorization: Bearer header",
            headers=_BEARER_CHALLENGE,
        )
    service = service_of(request)
    if stops:
        actor = await _find_or_remembered(
            service, sessions.find, secret, service.credentials.find_session
        )
    else:
        actor = await service.db.read(sessions.find, secret, service.clock.now())
    if actor is None:
        raise Problem(
            401, "session_over", "the session is over; sign in again", headers=_BEARER_CHALLENGE
        )
    if request.method not in session.SAFE_METHODS:
        session.check_csrf(request, secret)
    asgi.mark_proven(request.scope, ADMINISTRATOR)
    if service.credentials.find_session(secret, service.clock.now()) is None:
        service.refresh_credentials_soon()
    return actor


async def _find_or_remembered(
    service: Service,
    find: Callable[[Connection, str, float], Actor | None],
    secret: str,
    remembered: Callable[[str, float], Actor | None],
) -> Actor | None:
    """Return the actor of a secret, from the database or, if it does not answer, from memory."""
    now = service.clock.now()
    try:
        async with asyncio.timeout(LIMITS.stop_patience):
            return await service.db.read(find, secret, now)
    except (StorageError, TimeoutError):
        actor = remembered(secret, now)
        if actor is None:
            raise StorageError("storage", "the database cannot tell whose token this is") from None
        return actor


async def authenticate_token(request: Request, token: str, stops: bool = False) -> Actor:
    """Return the actor of a token.

    A right token is looked up first, so that failures of other clients at its address do not
    matter. Each wrong token of an address delays the next answer (50 ms, doubled up to 2 s).

    Raises:
        Problem: 401 ``token_wrong``; 429 ``too_many_refusals``; 403 ``role_too_low`` for a
            mirror's token outside of ``/api/mirror/``.
    """
    service = service_of(request)
    if stops:
        actor = await _find_or_remembered(
            service, tokens.find, token, service.credentials.find_token
        )
    else:
        actor = await service.db.read(tokens.find, token, service.clock.now())
    if actor is None:
        throttle: Throttle = request.app.state.throttle
        address = network_of(request.client.host if request.client else "")
        failures = throttle.failures_of(address)
        over_limit = throttle.count_failure(address)
        service.counts.refused["token_wrong"] += 1
        await asyncio.sleep(min(0.05 * 2 ** min(failures, 6), 2.0))
        if over_limit:
            raise Problem(
                429, "too_many_refusals", "too many wrong tokens", headers={"retry-after": "60"}
            )
        raise Problem(
            401,
            "token_wrong",
            "the token is unknown, expired or revoked",
            headers=_BEARER_CHALLENGE,
        )
    asgi.mark_proven(request.scope, ADMINISTRATOR)
    if service.credentials.find_token(token, service.clock.now()) is None:
        service.refresh_credentials_soon()
    if actor.role == MIRROR and not request.url.path.startswith("/api/mirror/"):
        raise Problem(403, "role_too_low", "a mirror's token is for a mirror", found=actor.role)
    return actor


async def is_still_authorized(request: Request, actor: Actor) -> bool:
    """Tell whether the token or session of a long request is still valid, with the same role."""
    service = service_of(request)
    token = token_of(request)
    find, secret = (
        (sessions.find, _session_secret_of(request)) if token is None else (tokens.find, token)
    )
    try:
        found = await service.db.read(find, secret or "", service.clock.now())
    except StorageError:
        return False  # unknown: the client connects again
    return found == actor


def _session_secret_of(request: Request) -> str | None:
    return None if "authorization" in request.headers else session.secret_of(request)


def token_of(request: Request) -> str | None:
    """Return the bearer token of a request, None without one."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and 0 < len(token) <= 128 else None


Viewer = Annotated[Actor, Depends(RequireRole("viewer"))]
Operator = Annotated[Actor, Depends(RequireRole("operator"))]
Admin = Annotated[Actor, Depends(RequireRole("admin"))]
Stopper = Annotated[Actor, Depends(RequireRole("operator", stops=True))]
