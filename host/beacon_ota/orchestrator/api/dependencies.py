"""FastAPI dependencies: the parts of the orchestrator that a request's handler works with."""

from typing import Annotated

from fastapi import Depends, Request

from beacon_ota.orchestrator.core.engine import Engine
from beacon_ota.orchestrator.core.service import Service
from beacon_ota.orchestrator.webhooks.dispatcher import WebhookDispatcher


def service_of(request: Request) -> Service:
    """Return the service of the application that handles a request."""
    return request.app.state.service


def engine_of(request: Request) -> Engine:
    """Return the engine of the application that handles a request."""
    return request.app.state.engine


def dispatcher_of(request: Request) -> WebhookDispatcher:
    """Return the webhook dispatcher of the application that handles a request."""
    return request.app.state.webhooks


ServiceDep = Annotated[Service, Depends(service_of)]
EngineDep = Annotated[Engine, Depends(engine_of)]
DispatcherDep = Annotated[WebhookDispatcher, Depends(dispatcher_of)]
