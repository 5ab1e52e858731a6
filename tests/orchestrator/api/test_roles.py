"""Every endpoint and every role: the table is docs/security.md's, and the application's own."""

import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from beacon_ota.orchestrator import dashboard
from beacon_ota.orchestrator.api.app import create_app
from beacon_ota.orchestrator.beacon_api.app import ROUTES, _route_call
from tests.orchestrator.world import Server, TestBeacon

DOCS = Path(__file__).parents[3] / "docs" / "security.md"
ROLES = ("nobody", "mirror", "beacon", "viewer", "operator", "admin")
ADMINISTRATORS = ROLES[3:]
FORMS = ("POST /login", "POST /logout")  # what they answer depends on the form
FILL = {"path": "no/such", "beacon_id": "no-such", "token_id": "00000000", "name": "app.css"}


def documented() -> dict[str, set[str]]:
    """Return the table of docs/security.md: endpoint -> the least roles."""
    found = {}
    for line in DOCS.read_text().splitlines():
        match = re.fullmatch(r"\| `([A-Z]+ /\S*)` \| ([\w, ]+) \|", line)
        if match:
            found[match[1]] = set(match[2].split(", "))
    return found


def leaves(routes: Iterable[Any]) -> Iterator[Any]:
    """Yield the routes with a path of their own; FastAPI keeps an included router as one."""
    for route in routes:
        router = getattr(route, "original_router", None)
        if router is None:
            yield route
        else:
            yield from leaves(router.routes)


def routed() -> set[str]:
    """Return every endpoint of the application: the API, the dashboard, the beacons' calls."""
    nothing: Any = None
    app = create_app(nothing, nothing, nothing)
    found = set(ROUTES)
    for route in (*leaves(app.routes), *dashboard.dashboard_routes()):
        path = re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path)
        found |= {f"{method} {path}" for method in route.methods if method != "HEAD"}
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("roles") / "data") as server:
        admin = server.admin()
        made = {role: admin.create_token(role, role)["token"] for role in ("viewer", "operator")}
        made["mirror"] = admin.call("POST", "/api/mirrors", json={"name": "m", "site": ""})["token"]
        made |= {"admin": server.token}
        key = secrets.token_bytes(32)
        admin.create_beacon("b1", "esp32c3", key=key.hex())
        yield server, made, TestBeacon(server.url, "b1", key)


def path_of(name: str) -> str:
    if name.endswith("/ota_status"):
        return "/api/beacons/b1/ota_status"
    return re.sub(r"\{(\w+)\}", lambda found: FILL.get(found[1], "0" * 24), name.split(" ")[1])


def ask(world, name: str, role: str, **more: Any) -> requests.Response:
    """Make a request to an endpoint with the credentials of a role."""
    server, tokens, beacon = world
    method, path = name.split(" ")[0], path_of(name)
    body = b"{}" if method in ("POST", "PUT", "PATCH") else b""
    headers = {"Content-Type": "application/json"} if body else {}
    if role == "beacon":
        headers["Authorization"] = beacon.sign(method, path, body)
    elif role != "nobody":
        headers["Authorization"] = f"Bearer {tokens[role]}"
    more = {"data": body, **more} if body else more
    return requests.request(
        method,
        server.url + path,
        headers=headers,
        timeout=60,
        stream=True,
        allow_redirects=False,
        **more,
    )


def test_the_table_names_every_endpoint(world):
    assert set(documented()) == routed()
    assert len(routed()) > 70
    spec = requests.get(world[0].url + "/api/openapi.json", timeout=60).json()
    assert {f"{m.upper()} {path}" for path, ms in spec["paths"].items() for m in ms} <= routed()


def test_the_calls_of_beacons_are_routed_as_named():
    for name, function in ROUTES.items():
        scope = {"method": name.split(" ")[0], "path": path_of(name)}
        assert _route_call(scope) is function
        assert _route_call({**scope, "method": "DELETE"}) is None
        assert _route_call({**scope, "path": scope["path"] + "/more"}) is None


def allowed(least: set[str], role: str) -> bool:
    if "nobody" in least or role in least:
        return True
    ranks = [ADMINISTRATORS.index(one) for one in least if one in ADMINISTRATORS]
    return role in ADMINISTRATORS and bool(ranks) and ADMINISTRATORS.index(role) >= min(ranks)


@pytest.mark.parametrize("name", sorted(set(documented()) - set(FORMS)))
def test_an_endpoint_for_every_role(world, name):
    least = documented()[name]
    for role in ROLES:
        answer = ask(world, name, role)
        refused = answer.status_code in (401, 403) or (
            answer.status_code == 303 and "/login" in answer.headers["location"]
        )
        if least == {"beacon"}:  # with a token, there is no such endpoint
            refused = refused or answer.status_code in (404, 405)
        answer.close()
        assert answer.status_code < 500, (name, role)
        assert refused is not allowed(least, role), (name, role, answer.status_code)


@pytest.mark.parametrize("role", ROLES)
def test_the_forms_of_a_browser_are_open(world, role):
    entered = {"token": world[1]["viewer"]}
    for name, data, to in (("POST /login", entered, "/"), ("POST /logout", {}, "/login")):
        answer = requests.post(
            world[0].url + path_of(name), data=data, timeout=60, allow_redirects=False
        )
        assert (answer.status_code, answer.headers["location"]) == (303, to), (name, role)
        assert ask(world, name, role).status_code < 500


def test_refusals_come_before_anything_is_looked_at(world):
    """The role decides first, whatever the body says: also about what does not exist."""
    server, made, _beacon = world
    for body in (b"", b"{", b'{"a":1}', b"[" * 10_000):
        for role, status in (("viewer", 403), ("nobody", 401)):
            headers = {"Content-Type": "application/json"}
            if role in made:
                headers["Authorization"] = f"Bearer {made[role]}"
            answer = requests.post(
                server.url + "/api/tokens", data=body, headers=headers, timeout=60
            )
            assert answer.status_code in (status, 422, 400), (body, role)
            assert "token" not in answer.json()
