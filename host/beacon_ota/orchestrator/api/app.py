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
from beacon_ota.orchestrator.engine import Engine
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.orchestrator.service import Service
from beacon_ota.orchestrator.throttle import Throttle
from beacon_ota.orchestrator.webhooks import Webhooks


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
        """Tell that the orchestrator is up and its database answers."""
        await service.db.read(lambda conn: conn.exec_driver_sql("SELECT 1").scalar())
        return answer({"status": "ok", "version": __version__})

    return app
