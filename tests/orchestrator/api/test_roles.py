"""Every endpoint and every role: the table is docs/security.md's, and the application's own."""

import re
from pathlib import Path

import pytest
import requests

from tests.orchestrator.world import Server

DOCS = Path(__file__).parents[3] / "docs" / "security.md"
ROLES = ("nobody", "mirror", "viewer", "operator", "admin")
PAGES = {  # of the dashboard and beside the API: not in the OpenAPI document
    "GET /": "viewer",
    "GET /beacons": "viewer",
    "GET /beacons/{beacon_id}": "viewer",
    "GET /rollouts": "viewer",
    "GET /rollouts/{rollout_id}": "viewer",
    "GET /releases": "viewer",
    "GET /releases/{firmware_id}": "viewer",
    "GET /failures": "viewer",
    "GET /activity": "viewer",
    "GET /webhooks": "admin",
    "GET /audit": "admin",
    "GET /live": "viewer",
    "GET /docs": "nobody",
    "GET /api/openapi.json": "nobody",
}
FILL = {"path": "no/such", "beacon_id": "no-such", "token_id": "00000000"}


def documented() -> dict[str, str]:
    """Return the table of docs/security.md: endpoint -> the least role."""
    found = {}
    for line in DOCS.read_text().splitlines():
        match = re.fullmatch(r"\| `([A-Z]+ /\S*)` \| (\w+) \|", line)
        if match:
            found[match[1]] = match[2]
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("roles") / "data") as server:
        admin = server.admin()
        made = {role: admin.create_token(role, role)["token"] for role in ("viewer", "operator")}
        made["mirror"] = admin.call("POST", "/api/mirrors", json={"name": "m", "site": ""})["token"]
        made |= {"admin": server.token, "nobody": ""}
        spec = requests.get(server.url + "/api/openapi.json", timeout=60).json()
        routes = {f"{m.upper()} {path}" for path, ms in spec["paths"].items() for m in ms}
        yield server, made, routes


def test_the_table_names_every_endpoint(world):
    _server, _made, routes = world
    assert set(documented()) == routes | set(PAGES)
    assert {name: documented()[name] for name in PAGES} == PAGES
    assert len(routes) > 50


def allowed(least: str, role: str) -> bool:
    if least == "mirror":
        return role == "mirror"
    if least == "nobody":
        return True
    return role != "mirror" and ROLES.index(role) >= ROLES.index(least)


def test_every_endpoint_for_every_role(world):
    server, made, _routes = world
    session = requests.Session()
    for name, least in documented().items():
        method, path = name.split(" ")
        filled = re.sub(r"\{(\w+)\}", lambda found: FILL.get(found[1], "0" * 24), path)
        for role in ROLES:
            headers = {"Authorization": f"Bearer {made[role]}"} if made[role] else {}
            answer = session.request(
                method,
                server.url + filled,
                headers=headers,
                json={} if method in ("POST", "PUT", "PATCH") else None,
                timeout=60,
                stream=True,
                allow_redirects=False,
            )
            refused = answer.status_code in (401, 403) or (
                answer.status_code == 303 and "/login" in answer.headers["location"]
            )
            answer.close()
            assert answer.status_code < 500, (name, role)
            assert refused is not allowed(least, role), (name, role, answer.status_code)


def test_refusals_come_before_anything_is_looked_at(world):
    """Who may not is told that, whatever the body says: also of what does not exist."""
    server, made, _routes = world
    for body in (b"", b"{", b'{"a":1}', b"[" * 10_000):
        for role, status in (("viewer", 403), ("nobody", 401)):
            headers = {"Content-Type": "application/json"}
            if made[role]:
                headers["Authorization"] = f"Bearer {made[role]}"
            answer = requests.post(
                server.url + "/api/tokens", data=body, headers=headers, timeout=60
            )
            assert answer.status_code in (status, 422, 400), (body, role)
            assert "token" not in answer.json()
