"""Handlers get the parts of the application that their request came to."""

from starlette.requests import Request

from beacon_ota.orchestrator.api.app import create_app
from beacon_ota.orchestrator.api.dependencies import dispatcher_of, engine_of, service_of
from beacon_ota.orchestrator.webhooks.dispatcher import WebhookDispatcher


def test_each_part_is_the_one_of_the_application(local):
    dispatcher = WebhookDispatcher(local.service)
    app = create_app(local.service, local.engine, dispatcher)
    request = Request({"type": "http", "app": app, "headers": []})
    assert service_of(request) is local.service
    assert engine_of(request) is local.engine
    assert dispatcher_of(request) is dispatcher
