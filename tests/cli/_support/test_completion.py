"""Completion: names of a server by their beginning, fixed words, silence without a server."""

import pytest
import typer
import typer.main

from beacon_ota.cli import app
from beacon_ota.cli._support.completion import complete_names, complete_words
from tests.orchestrator.world import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("server") / "data") as server:
        server.admin().create_site("north")
        server.admin().create_site("south")
        server.admin().create_beacon("lamp-1", "esp32c3")
        server.admin().create_beacon("lamp-2", "esp32c3")
        yield server


def complete(kind: str, incomplete: str, url: str, token: str | None) -> list[str]:
    context = typer.Context(typer.main.get_command(app))
    context.params = {"url": url, "token": token}
    return complete_names(kind)(context, incomplete)


def test_names_of_the_server(server):
    admin = server.admin()
    assert complete("site", "n", admin.url, admin.token) == ["north"]
    assert complete("beacon", "lamp", admin.url, admin.token) == ["lamp-1", "lamp-2"]
    assert complete("beacon", "amp", admin.url, admin.token) == []
    assert complete("release", "", admin.url, admin.token) == []
    assert complete("rollout", "", admin.url, admin.token) == []


def test_no_server_and_no_permission_complete_nothing(server):
    for kind in ("beacon", "release", "rollout", "site"):
        assert complete(kind, "", "http://127.0.0.1:9", "x") == []
        assert complete(kind, "", server.url, "not a token") == []


def test_words():
    assert complete_words("viewer", "operator")("op") == ["operator"]
