"""Who may do what: bearer tokens and sessions, and what a wrong token costs."""

import asyncio
from typing import Annotated

from fastapi import Depends, Request

from beacon_ota.orchestrator.api import session
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.problems import Problem
from beacon_ota.orchestrator.service import Service
from beacon_ota.orchestrator.store import sessions, tokens
from beacon_ota.orchestrator.store.tokens import MIRROR, ROLES, Actor
from beacon_ota.orchestrator.throttle import Throttle

_WRONG = {"www-authenticate": "Bearer"}


def service_of(request: Request) -> Service:
    """Return the orchestrator that a request came to."""
    return request.app.state.service


class Access:
    """A dependency: the actor behind a request, of at least the given role."""

    def __init__(self, role: str):
        self._rank = ROLES.index(role)

    async def __call__(self, request: Request) -> Actor:
        actor = await actor_of(request)
        if actor.role not in ROLES[self._rank :]:
            raise Problem(
                403,
                "role_too_low",
                "your role does not allow this",
                found=actor.role,
                expected=ROLES[self._rank],
            )
        return actor


async def actor_of(request: Request) -> Actor:
    """Return who asks: by bearer token, or by the session of a browser.

    Raises:
        Problem: ``token_missing``, those of :func:`holder`, ``session_over``, ``csrf``.
    """
    token = token_of(request)
    if token is not None:
        return await holder(request, token)
    secret = None if "authorization" in request.headers else session.secret_of(request)
    if secret is None:
        raise Problem(
            401, "token_missing", "this needs an Authorization: Bearer header", headers=_WRONG
        )
    service = service_of(request)
    actor = await service.db.read(sessions.find, secret, service.clock.now())
    if actor is None:
        raise Problem(401, "session_over", "the session is over; sign in again", headers=_WRONG)
    if request.method not in session.SAFE:
        session.check_csrf(request, secret)
    return actor


async def holder(request: Request, token: str) -> Actor:
    """Return whose token this is. Wrong ones cost time, more with each, then a minute's wait.

    Raises:
        Problem: ``token_wrong``, ``too_many_refusals``.
    """
    service = service_of(request)
    throttle: Throttle = request.app.state.throttle
    address = request.client.host if request.client else ""
    failures = throttle.count(address)
    if failures >= LIMITS.refusals:
        raise Problem(
            429, "too_many_refusals", "too many wrong tokens", headers={"retry-after": "60"}
        )
    actor = await service.db.read(tokens.find, token, service.clock.now())
    if actor is None:
        throttle.over(address)
        service.counts.refused["token_wrong"] += 1
        await asyncio.sleep(min(0.05 * 2 ** min(failures, 6), 2.0))
        raise Problem(
            401, "token_wrong", "the token is unknown, expired or revoked", headers=_WRONG
        )
    if actor.role == MIRROR and not request.url.path.startswith("/api/mirror/"):
        raise Problem(403, "role_too_low", "a mirror's token is for a mirror", found=actor.role)
    return actor


def token_of(request: Request) -> str | None:
    """Return the bearer token of a request."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and 0 < len(token) <= 128 else None


On = Annotated[Service, Depends(service_of)]
Viewer = Annotated[Actor, Depends(Access("viewer"))]
Operator = Annotated[Actor, Depends(Access("operator"))]
Admin = Annotated[Actor, Depends(Access("admin"))]
