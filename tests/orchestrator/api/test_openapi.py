"""The administrators' API does what its own OpenAPI document says: whatever is sent, the answer is
documented in kind, never a 5xx, and a refusal is a problem document."""

import time
from urllib.parse import quote

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.orchestrator.world import Server, beacons, upload

ENDLESS = "/api/events"  # a stream


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    """A server with something in it, and what its things are called."""
    folder = tmp_path_factory.mktemp("openapi")
    with Server(folder / "data") as server:
        admin = server.admin()
        admin.create_site("hq", tz="Europe/Berlin")
        admin.create_site("hq/a")
        fleet = beacons(server, 3, prefix="api-", site="hq/a")
        firmware = upload(admin, "1.1.0", folder, channel="stable")["firmware_id"]
        plan = {"preset": "all-at-once", "window": "00:00-24:00"}
        rollout = admin.create_rollout(firmware, plan)["rollout_id"]
        fleet[0].update(fleet[0].offered())
        fleet[1].fail(fleet[1].offered())
        known = {
            "firmware_id": firmware,
            "rollout_id": rollout,
            "beacon_id": fleet[2].id,
            "path": "hq/a",
        }
        yield server, known
        assert "Traceback" not in server.log(), server.log()


def operations(server: Server) -> dict:
    schema = schemathesis.openapi.from_url(f"{server.url}/api/openapi.json")
    found = {}
    for result in schema.get_all_operations():
        operation = result.ok()  # type: ignore[union-attr]
        if operation.path != ENDLESS:
            found[f"{operation.method.upper()} {operation.path}"] = operation
    return found


class Trier:
    """Sends operations what their description allows, and what it does not."""

    def __init__(self, server: Server, known: dict[str, str]):
        self.server, self.known = server, known
        self.session = requests.Session()
        self.headers = {"Authorization": f"Bearer {server.token}"}
        self.calls = 0

    def everything(self, examples: int, *, derandomize: bool) -> int:
        """Try every operation so often; return the number of calls."""
        for name, operation in operations(self.server).items():
            self.operation(name, operation, examples, derandomize)
        return self.calls

    def operation(self, name: str, operation, examples: int, derandomize: bool) -> None:
        modes = schemathesis.GenerationMode
        allowed = operation.as_strategy(generation_mode=modes.POSITIVE)
        kinds = [allowed]
        if operation.body or any(True for _ in operation.iter_parameters()):
            kinds.append(operation.as_strategy(generation_mode=modes.NEGATIVE))

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=derandomize,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        )
        @given(case=st.one_of(kinds), real=st.booleans())
        def one(case, real):
            self.send(name, case, real)

        one()

    def send(self, name: str, case, real: bool) -> None:
        """Send one; ``real`` puts the names of what there is into the path."""
        if real:
            for parameter in case.path_parameters or {}:
                if parameter in self.known:
                    case.path_parameters[parameter] = self.known[parameter]
        answer = case.call(
            base_url=self.server.url, session=self.session, headers=self.headers, timeout=60
        )
        self.calls += 1
        assert answer.status_code < 500, (name, case, answer.text)
        if answer.status_code >= 400 and case.method.upper() != "HEAD":
            kind = str(answer.headers.get("content-type"))
            assert "application/problem+json" in kind, (name, answer.status_code, answer.text)
            assert answer.json()["code"], (name, answer.text)


def test_no_answer_is_a_5xx(api):
    assert len(operations(api[0])) > 30
    assert Trier(*api).everything(4, derandomize=True) > 100
    # And it is still there, with everything that nobody deleted.
    server, known = api
    assert server.admin().verify_audit()["entries"]
    assert requests.get(server.url + "/health", timeout=60).status_code == 200


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_answer_is_a_5xx_at_length(api):
    began = time.monotonic()
    calls = Trier(*api).everything(300, derandomize=False)
    print(f"{calls} calls in {time.monotonic() - began:.0f} s")


def test_every_operation_says_what_it_is_for(api):
    for name, operation in operations(api[0]).items():
        assert operation.definition.raw.get("summary"), name
        assert quote(operation.path, safe="/{}_:") == operation.path
