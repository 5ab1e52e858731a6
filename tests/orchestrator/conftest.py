"""Orchestrators for the tests: one of a module, or one of a test with a clock of its own."""

import pytest

from beacon_ota.orchestrator.db import connection
from tests.orchestrator.elsewhere import Elsewhere
from tests.orchestrator.world import Local, Server


@pytest.fixture(autouse=True)
def short_locks(monkeypatch):
    """A locked SQLite is given up sooner, in this process; what follows is the same."""
    monkeypatch.setattr(connection, "LOCK_TIMEOUT_S", 2.0)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server process that a module's tests share."""
    with Server(tmp_path_factory.mktemp("orchestrator") / "data") as server:
        yield server
        log = server.log()
    assert "Traceback" not in log, log


@pytest.fixture
def admin(server):
    """A client of it with the role admin."""
    return server.admin()


@pytest.fixture
def local(tmp_path, caplog):
    """An orchestrator in this process whose time goes on when the test says so."""
    with Local(tmp_path / "data") as local:
        yield local
    failures = [record for record in caplog.records if record.exc_info]
    assert not failures, caplog.text


@pytest.fixture
def elsewhere(local):
    """Another process on its database."""
    with Elsewhere(local) as elsewhere:
        yield elsewhere
