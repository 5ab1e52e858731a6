"""Assembles the administrators' application: routers, error handlers, ``/health``."""

from fastapi import FastAPI
from starlette.responses import Response

from beacon_ota import __version__
from beacon_ota.orchestrator.api import (
    answers,
    audit,
    beacon_views,
    beacons,
    docs,
    events,
    firmware_cost,
    firmwares,
    metrics,
    mirror_sync,
    mirrors,
    rollouts,
    sites,
    tokens,
    webhooks,
)
from beacon_ota.orchestrator.api.answers import json_response
from beacon_ota.orchestrator.api.previews import Previews
from beacon_ota.orchestrator.core.engine import Engine
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db.connection import StorageError
from beacon_ota.orchestrator.db.tables import Fields
from beacon_ota.orchestrator.http import problems
from beacon_ota.orchestrator.http.throttle import Throttle
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.webhooks.dispatcher import WebhookDispatcher


def create_app(service: Service, engine: Engine, dispatcher: WebhookDispatcher) -> FastAPI:
    """Return the application for a running service."""
    app = FastAPI(
        title="Beacon OTA",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        redirect_slashes=False,  # a redirect would trust the Host header
    )
    app.state.service = service
    app.state.engine = engine
    app.state.webhooks = dispatcher
    app.state.throttle = Throttle(LIMITS.refusals)
    app.state.previews = Previews()
    answers.install_error_handlers(app)
    for module in (
        firmwares,
        firmware_cost,
        beacons,
        beacon_views,
        sites,
        rollouts,
        events,
        webhooks,
        mirrors,
        mirror_sync,
        audit,
        tokens,
        metrics,
        docs,
    ):
        app.include_router(module.router)
    app.include_router(firmwares.download_router)

    @app.get("/health", tags=["health"])
    async def show_health() -> Response:
        """Tell whether the orchestrator and its database answer, and which stops are not stored.

        A mirror adds its relation to its primary; with ``degraded`` it goes on serving beacons.
        """
        service.sync_stops()
        unstored = sorted(service.fleet.stops)
        try:
            await service.db.read(lambda conn: conn.exec_driver_sql("SELECT 1").scalar())
        except StorageError as error:
            body = problems.problem_document(error, unstored_stops=unstored)
            return Response(body, problems.status_of(error), media_type=problems.MEDIA_TYPE)
        found: Fields = {"status": "ok", "version": __version__, "unstored_stops": unstored}
        if service.mirror is not None:
            found["mirror"] = status = service.mirror.health()
            if status["error"] is not None or not (status["in_step"] and status["hands_out"]):
                found["status"] = "degraded"
        if unstored:
            found["status"] = "stops_unstored"
        return json_response(found)

    return app
