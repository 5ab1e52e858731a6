"""Routes the calls of beacons: authenticates, calls the handler, signs refusals.

The application stands in front of FastAPI, and passes every other request on to it.
"""

import asyncio
import hashlib
import logging

from beacon_ota.errors import BeaconOtaError
from beacon_ota.orchestrator.beacon_api.auth import (
    AuthenticationError,
    Caller,
    authenticate_request,
)
from beacon_ota.orchestrator.beacon_api.download import serve_blocks, serve_download
from beacon_ota.orchestrator.beacon_api.poll import answer_poll
from beacon_ota.orchestrator.beacon_api.refusals import record_refusal
from beacon_ota.orchestrator.beacon_api.report import accept_report
from beacon_ota.orchestrator.core.fleet_records import BeaconState
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.http import asgi, problems
from beacon_ota.orchestrator.http.asgi import App, ClientDisconnected, Receive, Scope, Send
from beacon_ota.orchestrator.http.connections import BEACON, network_of
from beacon_ota.orchestrator.http.problems import Problem
from beacon_ota.orchestrator.http.throttle import Throttle
from beacon_ota.orchestrator.limits import LIMITS

log = logging.getLogger("beacon_ota.orchestrator")

_READ_METHODS = ("GET", "HEAD", "OPTIONS")
_STOP_PATHS = ("/pause", "/halt", "/abort")
_UNAUTHENTICATED_CODES = ("unknown_beacon", "bad_mac")


class BeaconApp:
    """The outer ASGI application: answers beacons, passes other requests to ``admin_app``."""

    def __init__(self, service: Service, admin_app: App):
        self.service = service
        self.admin_app = admin_app
        self.throttle = Throttle(LIMITS.refusals)
        self._event_throttle = Throttle(LIMITS.refusals)  # bounds the events about refusals, too

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.admin_app(scope, receive, send)
            return
        handler = _route_call(scope)
        authorization = asgi.get_header(scope, b"authorization")
        if handler is None or authorization[:7].lower() == "bearer ":
            upstream = self.service.settings.upstream
            if (
                upstream
                and scope["path"].startswith("/api/")
                and scope["method"] not in _READ_METHODS
            ):
                error = Problem(
                    409, "mirror", "this is a mirror; change it at its primary", expected=upstream
                )
                await asgi.send_response(
                    send, 409, problems.problem_document(error), (asgi.PROBLEM_TYPE,)
                )
                return
            if self.service.shared:
                await self._catch_up_for_admin(scope)
            self.service.sync_stops()
            await self.admin_app(scope, receive, send)
            return
        caller: Caller[BeaconState] | None = None
        self.service.sync_stops()
        try:
            body = (
                await asgi.read_body(scope, receive, LIMITS.status_body)
                if handler is accept_report
                else b""
            )
            try:
                caller = self._authenticate_caller(scope, authorization, body)
            except AuthenticationError as error:
                if error.code not in _UNAUTHENTICATED_CODES or not self.service.shared:
                    raise
                await self.service.catch_up()  # another process may just have registered it
                caller = self._authenticate_caller(scope, authorization, body)
            asgi.mark_proven(scope, BEACON)
            if caller.key != caller.beacon.key:
                await self.service.adopt_key(caller.beacon, caller.key)
                beacon_id = caller.beacon.beacon.id
                registered = self.service.fleet.beacons.get(beacon_id)
                if registered is None or caller.key not in (registered.key, *registered.given_keys):
                    # The beacon has used a later key in the meantime, or was removed.
                    raise AuthenticationError(
                        "bad_mac", "the signature does not fit the key", claimed_sender=beacon_id
                    )
            await handler(self.service, caller, body, scope, send)
        except ClientDisconnected:
            return
        except AuthenticationError as error:
            await self._send_refusal(scope, send, error, error.caller)
        except BeaconOtaError as error:
            await self._send_refusal(scope, send, error, caller)
        except Exception:
            log.exception("a beacon's request failed: %s", scope["path"])
            problem = Problem(500, "internal", "the orchestrator failed; the log says how")
            await self._send_refusal(scope, send, problem, caller)

    async def _catch_up_for_admin(self, scope: Scope) -> None:
        """Read the changes of other processes, so that an administrator sees those just made.

        A request that stops a rollout waits for ``LIMITS.stop_patience`` seconds at most: a stop
        does not depend on the changes that are read later.
        """
        patience = LIMITS.stop_patience if scope["path"].endswith(_STOP_PATHS) else None
        try:
            async with asyncio.timeout(patience):
                await self.service.catch_up()
        except TimeoutError:
            log.warning("what the other workers did cannot be read in time")
        except BeaconOtaError as error:
            log.warning("what the other workers did cannot be read: %s", error)

    def _authenticate_caller(
        self, scope: Scope, authorization: str, body: bytes
    ) -> Caller[BeaconState]:
        """Return the beacon that signed a request (see ``authenticate_request``)."""
        service = self.service
        return authenticate_request(
            service.fleet.beacons.get,
            authorization,
            scope["method"],
            asgi.request_target(scope),
            body,
            service.clock.now(),
        )

    async def _send_refusal(
        self, scope: Scope, send: Send, error: BeaconOtaError, caller: Caller | None
    ) -> None:
        """Answer with a problem document, signed if there is an authenticated caller."""
        code = problems.status_of(error)
        if (
            caller is not None
            and not isinstance(error, AuthenticationError)
            and _counts_as_refusal(error, code)
        ):
            record_refusal(self.service, caller.beacon, error.code)
        headers = [asgi.PROBLEM_TYPE]
        self.service.counts.problems[error.code] += 1
        if isinstance(error, AuthenticationError):
            self.service.counts.refused[error.code] += 1
            now = self.service.clock.now()
            address = asgi.client_address(scope)
            # Only wrong signatures count, no wrong times: after a power cut, every beacon of a
            # building behind one address learns the time.
            if error.code in _UNAUTHENTICATED_CODES and self.throttle.count_failure(
                network_of(address)
            ):
                error = Problem(429, "too_many_refusals", "too many refused requests from here")
                code = 429
                headers.append((b"retry-after", b"30"))
            elif not self._event_throttle.count_failure(address):
                who = error.claimed_sender
                self.service.fleet.contacts.mark_claimed(who, now, error.code, address)
                data = {"code": error.code, "address": address}
                self.service.hub.broadcast_transient(now, "auth.refused", who, data)
                log.info("refused %s: %s %s from %s", scope["path"], error.code, who, address)
        server_time = error.sign_at if isinstance(error, AuthenticationError) else None
        payload = problems.problem_document(
            error, server_time=server_time or int(self.service.clock.now())
        )
        if caller is not None:
            headers.append(caller.sign_response(code, hashlib.sha256(payload).hexdigest()))
        await asgi.send_response(send, code, payload, headers)


def _counts_as_refusal(error: BeaconOtaError, status: int) -> bool:
    """Tell whether an answer refuses the beacon itself.

    False for the end of an attempt (409, 410), for failures of the orchestrator (5xx), and for a
    release that has no block index.
    """
    if error.code == "blocks_missing":
        return False
    return error.code == "device_type_mismatch" or (status < 500 and status not in (409, 410))


# The calls of beacons, as docs/security.md names them.
ROUTES = {
    "GET /firmwares/latest/{device_type}": answer_poll,
    "GET /firmwares/{firmware_id}/download": serve_download,
    "GET /firmwares/{firmware_id}/blocks": serve_blocks,
    "POST /api/beacons/{beacon_id}/ota_status": accept_report,
}


def _route_call(scope: Scope):
    """Return the function of ``ROUTES`` that answers a request, None for other requests."""
    path: str = scope["path"]
    method = scope["method"]
    if method == "GET" and path.startswith("/firmwares/"):
        if path.startswith("/firmwares/latest/") and path.count("/") == 3:
            return answer_poll
        if path.endswith("/download") and path.count("/") == 3:
            return serve_download
        if path.endswith("/blocks") and path.count("/") == 3:
            return serve_blocks
    elif (
        method == "POST"
        and path.startswith("/api/beacons/")
        and path.endswith("/ota_status")
        and path.count("/") == 4
    ):
        return accept_report
    return None
