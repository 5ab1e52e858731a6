"""The administrators' application: every router, the docs, and how refusals look."""

from fastapi import FastAPI
from starlette.responses import Response

from beacon_ota import __version__
from beacon_ota.orchestrator.api import (
    answers,
    audit,
    beacons,
    docs,
    events,
    firmwares,
    metrics,
    mirrors,
    rollouts,
    sites,
    tokens,
    webhooks,
)
from beacon_ota.orchestrator.api.answers import answer
from beacon_ota.orchestrator.api.previews import Previews
from beacon_ota.orchestrator.core.engine import Engine
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.db.database import StorageError
from beacon_ota.orchestrator.db.tables import Fields
from beacon_ota.orchestrator.http import problems
from beacon_ota.orchestrator.http.throttle import Throttle
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.webhooks.dispatcher import Webhooks


def create_app(service: Service, engine: Engine, telling: Webhooks) -> FastAPI:
    """Return the application for a service that runs."""
    app = FastAPI(
        title="Beacon OTA",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        redirect_slashes=False,  # it would redirect to whatever the Host header says
    )
    app.state.service = service
    app.state.engine = engine
    app.state.webhooks = telling
    app.state.throttle = Throttle(LIMITS.refusals)
    app.state.previews = Previews()
    answers.install(app)
    for module in (
        firmwares,
        beacons,
        sites,
        rollouts,
        events,
        webhooks,
        mirrors,
        audit,
        tokens,
        metrics,
        docs,
    ):
        app.include_router(module.router)
    app.include_router(firmwares.download_router)

    @app.get("/health", tags=["health"])
    async def health() -> Response:
        """Tell that the orchestrator is up, its database answers, and what it has not taken.

        A mirror says how it stands with its primary; ``degraded`` is no reason to end it: whoever
        asks it is served.
        """
        service.sync_stops()
        unstored = sorted(service.fleet.stops)
        try:
            await service.db.read(lambda conn: conn.exec_driver_sql("SELECT 1").scalar())
        except StorageError as error:
            body = problems.document(error, unstored_stops=unstored)
            return Response(body, problems.status_of(error), media_type=problems.MEDIA_TYPE)
        found: Fields = {"status": "ok", "version": __version__, "unstored_stops": unstored}
        if service.mirror is not None:
            found["mirror"] = own = service.mirror.health()
            if own["error"] is not None or not (own["in_step"] and own["hands_out"]):
                found["status"] = "degraded"
        if unstored:
            found["status"] = "stops_unstored"
        return answer(found)

    return app
