"""A client of the orchestrator's API."""

from beacon_ota.client.api import Client, Json
from beacon_ota.client.configuration import config_path, load_configuration
from beacon_ota.client.transport import DEFAULT_URL, Transport, error_from_response

__all__ = [
    "DEFAULT_URL",
    "Client",
    "Json",
    "Transport",
    "config_path",
    "error_from_response",
    "load_configuration",
]
