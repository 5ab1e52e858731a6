"""Numbers and texts that no client means well: 4xx by name, never 5xx, wherever they may stand."""

import json
import re
from urllib.parse import quote

import pytest
import requests

from tests.orchestrator.postgres import cluster
from tests.orchestrator.world import Server, beacons, upload

NUMBERS = (
    str(2**31),  # beyond a column of PostgreSQL's integers
    str(2**32),
    str(2**63 - 1),
    "9" * 19,
    "9" * 20,
    "9" * 400,
    "9" * 5000,
    "-1",
    "-" + "9" * 5000,
    "0" * 5000 + "1",
    "1e400",
    "1e999999999",
    "-1e400",
    "nan",
    "NaN",
    "inf",
    "-Infinity",
    "0x10",
    "1_0",
    "²",
    "١٢",
    "1.5",
    "",
    " ",
    "\0",
    "a\0b",
)
TEXTS = (
    "\0",
    "a\0b",
    "%ed%a0%80",
    "%ff",
    "x" * 20_000,
    "x" * 100_000,
    "\u202e",
    "'",
    '"',
    "%",
    "_",
    "\\",
    "\n",
)
JSON_VALUES = (
    str(2**31),
    str(2**63),
    "9" * 19,
    "9" * 400,
    "1" + "0" * 5000,
    "-1" + "0" * 5000,
    "1e400",
    "-1e400",
    "1e-400",
    "1e999999999999",
    "NaN",
    "Infinity",
    "-Infinity",
    '"\\ud800"',
    '"\\u0000"',
    '"a\\u0000b"',
    "null",
    "true",
    "[]",
    "{}",
    "[" * 2000 + "]" * 2000,
    '{"a":' * 500 + "1" + "}" * 500,
    '"' + "x" * 5000 + '"',
)


# What PostgreSQL takes otherwise than SQLite; all else was refused before either was asked.
ITS_OWN = {
    str(2**31),
    str(2**32),
    str(2**63 - 1),
    str(2**63),
    "1e400",
    "\0",
    "a\0b",
    "%ed%a0%80",
    "%ff",
    '"\\ud800"',
    '"\\u0000"',
    '"a\\u0000b"',
}


def tried(server: Server, values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the values to try on the database of a server."""
    if not any(option.startswith("--database") for option in server.options):
        return values
    return tuple(value for value in values if value in ITS_OWN)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def world(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("numbers")
    where = [] if request.param == "sqlite" else [f"--database={cluster().create_database()}"]
    with Server(folder / "data", *where) as server:
        admin = server.admin()
        admin.create_site("hq")
        (beacon,) = beacons(server, 1, prefix="n", site="hq")
        firmware = upload(admin, "1.1.0", folder, channel="stable")["firmware_id"]
        plan = {"preset": "all-at-once", "window": "00:00-24:00"}
        rollout = admin.create_rollout(firmware, plan)["rollout_id"]
        fill = {
            "beacon_id": beacon.id,
            "firmware_id": firmware,
            "rollout_id": rollout,
            "path": "hq",
        }
        session = requests.Session()
        session.headers["Authorization"] = f"Bearer {server.token}"
        spec = session.get(server.url + "/api/openapi.json", timeout=60).json()
        yield server, session, fill, spec
        assert "Traceback" not in server.log(), server.log()


def filled(path: str, fill: dict[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: fill.get(found[1], "0" * 24), path)


def check(answer: requests.Response, what: object) -> None:
    answer.close()
    assert answer.status_code < 500, (what, answer.status_code)


def test_queries_and_headers_of_the_api(world):
    server, session, fill, spec = world
    for path, methods in spec["paths"].items():
        for method, operation in methods.items():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path" or method == "delete":
                    continue
                for value in tried(server, NUMBERS + TEXTS):
                    url = server.url + filled(path, fill)
                    if parameter["in"] == "query":
                        url += f"?{parameter['name']}={quote(value, safe='%')}"
                        headers = {}
                    else:
                        headers = {parameter["name"]: value.encode().strip() or b"x"}
                        if b"\0" in headers[parameter["name"]] or b"\n" in value.encode():
                            continue
                    answer = session.request(
                        method, url, headers=headers, json={}, timeout=60, stream=True
                    )
                    check(answer, (method, path, parameter["name"], value[:40]))


def test_queries_of_the_pages(world):
    server, session, fill, _spec = world
    pages = ("/", "/beacons", "/rollouts", "/releases", "/failures", "/activity", "/audit", "/live")
    names = [
        "page",
        "before",
        "after",
        "hours",
        "cause",
        "state",
        "version",
        "site",
        "q",
        "sort",
        "by",
        "cell",
        "rollout",
        "release",
        "building",
        "channel",
        "tag",
        "verify",
        "type",
        "device_type",
        "floor",
        "limit",
        "v",
        "next",
    ]
    for page in pages:
        for name in names:
            for value in tried(
                server, NUMBERS[:19] + ("²", "١٢", "\0", "1.2.²", "²." * 20, "9" * 400 + ".1.1")
            ):
                url = f"{server.url}{page}?{name}={quote(value)}"
                check(session.get(url, timeout=60, stream=True), (page, name, value[:40]))
    for value in tried(server, NUMBERS):
        if value.strip() and value.isascii() and "\0" not in value:
            headers = {"Last-Event-ID": value}
            answer = session.get(server.url + "/live", headers=headers, timeout=60, stream=True)
            check(answer, ("/live", value[:40]))


def test_paths(world):
    server, session, _fill, spec = world
    paths = [p for p, methods in spec["paths"].items() if "get" in methods and "{" in p]
    for path in [*paths, "/beacons/{id}", "/rollouts/{id}", "/releases/{id}", "/static/{name}"]:
        for value in tried(server, NUMBERS + TEXTS):
            url = server.url + re.sub(r"\{\w+\}", lambda _found, v=value: quote(v, safe="%"), path)
            check(session.get(url, timeout=60, stream=True), (path, value[:40]))


def test_headers_of_downloads(world):
    server, session, fill, _spec = world
    url = f"{server.url}/firmwares/{fill['firmware_id']}/download"
    for value in (
        "9" * 5000,
        "1e400",
        "0-" + "9" * 5000,
        "-" + "9" * 5000,
        "²",
        "0-1,2-3",
        "-",
        "",
    ):
        for name, text in (
            ("Range", "bytes=" + value),
            ("Range", value),
            ("If-Range", value),
            ("If-None-Match", value),
            ("If-Modified-Since", value),
            ("Cookie", "beacon_ota=" + value),
            ("Cookie", "theme=" + value),
            ("X-CSRF-Token", value),
        ):
            headers = {name: text.encode()}
            check(session.get(url, headers=headers, timeout=60), (name, text[:40]))


def _field_paths(schema: dict, spec: dict) -> list[str]:
    while "$ref" in schema:
        schema = spec["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return list(schema.get("properties", {}))


def test_bodies(world):
    server, session, fill, spec = world
    headers = {"Content-Type": "application/json"}
    for path, methods in spec["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {})
            if "application/json" not in content or path.startswith("/api/mirror/"):
                continue
            fields = _field_paths(content["application/json"]["schema"], spec)
            url = server.url + filled(path, fill)
            for value in tried(server, JSON_VALUES):
                bodies = [value, *(f'{{"{field}": {value}}}' for field in fields)]
                for body in bodies:
                    answer = session.request(
                        method, url, data=body.encode(), headers=headers, timeout=60
                    )
                    check(answer, (method, path, body[:60]))


PLAN = ("share", "soak", "sample", "silence", "patience", "presence", "failures", "in_a_row")


def test_plans(world):
    server, session, fill, _spec = world
    places = [
        '{{"ladder": [{{"share": {0}}}]}}',
        '{{"ladder": [{{"share": 0.5, "soak": {0}}}, {{"share": 1}}]}}',
        '{{"ladder": [{{"share": 0.5, "soak": "{1}h"}}, {{"share": 1}}]}}',
        '{{"offer": {0}}}',
        '{{"concurrency": {0}}}',
        '{{"window": {0}}}',
        '{{"waves": [{{"name": {0}}}]}}',
        '{{"waves": [{{"name": "a", "after": {0}}}]}}',
        *(f'{{{{"gate": {{{{"{name}": {{0}}}}}}}}}}' for name in PLAN),
        "{0}",
    ]
    for place in places:
        for value in tried(server, JSON_VALUES):
            plan = place.format(value, value.strip('"')[:4000])
            for path, more in (
                ("/api/rollouts/plan", ""),
                ("/api/rollouts", ', "start_at": 1e400'),
            ):
                body = f'{{"firmware_id": "{fill["firmware_id"]}", "plan": {plan}{more}}}'
                answer = session.post(
                    server.url + path,
                    data=body.encode(),
                    headers={"Content-Type": "application/json"},
                    timeout=60,
                )
                check(answer, (path, plan[:60]))


def test_what_a_mirror_says(world):
    server, session, fill, _spec = world
    made = session.post(
        server.url + "/api/mirrors", json={"name": "numbers", "site": ""}, timeout=60
    ).json()
    headers = {"Authorization": f"Bearer {made['token']}", "Content-Type": "application/json"}
    rows = ("attempts", "beacons", "events", "reports", "journal", "halts", "changes", "x")
    for value in tried(server, JSON_VALUES):
        bodies = [
            f'{{"epoch": "{"0" * 24}", "status": {{"backlog": {value}}}}}',
            f'{{"epoch": "{"0" * 24}", "status": {{"lag_s": {value}, "releases": {value}}}}}',
            f'{{"epoch": {value}}}',
            f'{{"epoch": "{"0" * 24}", "protocol": 2, "status": {{"version": {value}}}}}',
            f'{{"epoch": "{"0" * 24}", "status": {{"error": {value}, "moves": {value}}}}}',
            f'{{"epoch": "{"0" * 24}", "changes": [{{"seq": 1, "what": {value}, "row": {{}}}}]}}',
            f'{{"epoch": "{"1" * 24}", "changes": [{{"seq": 1, "what": "halts", "row": '
            f'{{"rollout_id": "{fill["rollout_id"]}", "reason": {value}}}}}]}}',
            f'{{"epoch": "{"0" * 24}", "changes": [{{"seq": {value}, "what": "x", "row": null}}]}}',
            *(
                f'{{"epoch": "{"0" * 24}", "changes": [{{"seq": 1, "what": "{what}", "row": '
                f'{{"id": {value}, "beacon_id": {value}, "at": {value}, "data": {value}, '
                f'"rollout_id": {value}, "seq": {value}}}}}]}}'
                for what in rows
            ),
        ]
        for body in bodies:
            answer = requests.post(
                server.url + "/api/mirror/sync", data=body.encode(), headers=headers, timeout=60
            )
            check(answer, body[:100])
    check(session.get(server.url + "/api/mirrors", timeout=60), "listing")


def test_reports_of_a_beacon(world):
    server, session, _fill, _spec = world
    (beacon,) = beacons(server, 1, prefix="said", site="hq")
    names = [
        "firmware_version",
        "updated_at",
        "image_sha256",
        "journal",
        "progress",
        "bytes",
        "detail",
        "heap_free",
    ]
    for name in (*names, "update_status", "uptime_s", "rssi", "wifi_s"):
        for value in tried(server, JSON_VALUES):
            doc = {
                "firmware_version": "1.0.0",
                "update_status": "idle",
                "updated_at": 1,
                "image_sha256": beacon.image,
                name: "VALUE",
            }
            body = json.dumps(doc).replace('"VALUE"', value).encode()
            target = f"/api/beacons/{beacon.id}/ota_status"
            answer = beacon.call("POST", target, body)
            assert answer.status < 500, (name, value[:40], answer.body)
    check(session.get(f"{server.url}/api/beacons/{beacon.id}", timeout=60), "show")
    check(session.get(f"{server.url}/beacons/{beacon.id}", timeout=60), "page")
    check(session.get(f"{server.url}/metrics", timeout=60), "metrics")


def test_a_parameter_given_twice(world):
    server, session, fill, spec = world
    for path, methods in spec["paths"].items():
        for method, operation in methods.items():
            names = [one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"]
            for name in names:
                for pair in (("1", "2"), ("1", ""), ("a", "\0"), ("9" * 400, "1")):
                    query = "&".join(f"{name}={quote(value)}" for value in pair)
                    url = f"{server.url}{filled(path, fill)}?{query}"
                    if method == "get":
                        check(session.get(url, timeout=60, stream=True), (path, query[:60]))
    beacon = f"{server.url}/firmwares/latest/esp32c3?version=1.0.0&version=2.0.0&state=valid&state="
    check(session.get(beacon, timeout=60), beacon)


TYPES = (
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    "multipart/form-data; boundary=",
    "multipart/form-data; boundary=" + "x" * 10_000,
    "application/json; charset=utf-16",
    "application/json; charset=nonsense",
    "application/xml",
    "a" * 20_000,
    "/",
    ";",
)


def test_bodies_of_another_type_than_they_say(world):
    server, session, fill, spec = world
    bodies = (b"{}", b"\xff\xfe{\0}\0", b"--x\r\n", b'{"a":' * 40_000)
    for path, methods in spec["paths"].items():
        for method in methods:
            if method in ("get", "delete"):
                continue
            for kind in TYPES:
                for body in bodies:
                    answer = session.request(
                        method,
                        server.url + filled(path, {**fill, "rollout_id": "0" * 24}),
                        data=body,
                        headers={"Content-Type": kind},
                        timeout=60,
                    )
                    check(answer, (method, path, kind[:40], body[:10]))
