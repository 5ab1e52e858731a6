"""Who may do what: bearer tokens and sessions, and what a wrong token costs."""

import asyncio
from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import Connection

from beacon_ota.orchestrator.api import session
from beacon_ota.orchestrator.api.dependencies import service_of
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db.database import StorageError
from beacon_ota.orchestrator.db.tables import sessions, tokens
from beacon_ota.orchestrator.db.tables.tokens import MIRROR, ROLES, Actor
from beacon_ota.orchestrator.http import asgi
from beacon_ota.orchestrator.http.connections import ADMINISTRATOR, network_of
from beacon_ota.orchestrator.http.problems import Problem
from beacon_ota.orchestrator.http.throttle import Throttle
from beacon_ota.orchestrator.limits import LIMITS

_BEARER_CHALLENGE = {"www-authenticate": "Bearer"}


class RequireRole:
    """A dependency: the actor behind a request, of at least the given role."""

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
    """Return who asks: by bearer token, or by the session of a browser.

    Args:
        stops: it is to stop a rollout: while the database does not answer, who was good a moment
            before may do that.

    Raises:
        Problem: ``token_missing``, those of :func:`holder`, ``session_over``, ``csrf``.
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
            service, sessions.find, secret, service.remembered.session
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
    if service.remembered.session(secret, service.clock.now()) is None:
        service.remember_soon()
    return actor


async def _find_or_remembered(
    service: Service,
    find: Callable[[Connection, str, float], Actor | None],
    secret: str,
    remembered: Callable[[str, float], Actor | None],
) -> Actor | None:
    """Return whose secret this is, by the database, or by memory when that does not answer."""
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
    """Return whose token this is.

    A right token is never refused for the failures of others at its address: it is looked up
    first. Wrong ones cost time, more with each, and are counted by address.

    Raises:
        Problem: ``token_wrong``, ``too_many_refusals``.
    """
    service = service_of(request)
    if stops:
        actor = await _find_or_remembered(service, tokens.find, token, service.remembered.token)
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
    if service.remembered.token(token, service.clock.now()) is None:
        service.remember_soon()
    if actor.role == MIRROR and not request.url.path.startswith("/api/mirror/"):
        raise Problem(403, "role_too_low", "a mirror's token is for a mirror", found=actor.role)
    return actor


async def is_still_authorized(request: Request, actor: Actor) -> bool:
    """Tell whether a request that goes on for long is still of whom it was, with the same role.

    Its token may be revoked or expired by now, its session over.
    """
    service = service_of(request)
    token = token_of(request)
    find, secret = (
        (sessions.find, _session_secret_of(request)) if token is None else (tokens.find, token)
    )
    try:
        found = await service.db.read(find, secret or "", service.clock.now())
    except StorageError:
        return False  # nobody can tell; whoever follows asks again
    return found == actor


def _session_secret_of(request: Request) -> str | None:
    return None if "authorization" in request.headers else session.secret_of(request)


def token_of(request: Request) -> str | None:
    """Return the bearer token of a request."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and 0 < len(token) <= 128 else None


Viewer = Annotated[Actor, Depends(RequireRole("viewer"))]
Operator = Annotated[Actor, Depends(RequireRole("operator"))]
Admin = Annotated[Actor, Depends(RequireRole("admin"))]
Stopper = Annotated[Actor, Depends(RequireRole("operator", stops=True))]
