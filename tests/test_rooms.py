"""Rooms: imports are as the table in docs/orchestrator.md has them; no circles; mirrored tests."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOST = ROOT / "host" / "beacon_ota"
PAGE = ROOT / "docs" / "orchestrator.md"
DEVICE = HOST / "virtual" / "modules"  # runs under MicroPython
ROW = re.compile(r"\| (\d+) \| ((?:`[\w.]+/?` ?)+)\| [^|]+ \| ((?:`\w+` ?)*)\|")
GROUND = "ground"  # modules beside the rooms, which every room may import

# Rooms whose modules have tests at the same path: a/b/c.py is tested by tests/a/b/test_c.py.
MIRRORED = ("orchestrator", "virtual", "campaign", "cli/_support", "console", "inspect", "fleet")
ELSEWHERE = ("orchestrator/dashboard/", "orchestrator/db/migrations/", "virtual/modules/")
# Modules that are tested through others. Nothing is added here: a new module has a test of its own.
WITHOUT = """
campaign/fuzz/coverage.py
campaign/fuzz/run.py
campaign/kills/server_process.py
campaign/kills/simulated_beacon.py
campaign/power/recording.py
campaign/report.py
campaign/rig/beacon_rig.py
campaign/rig/builds.py
campaign/rig/http_server.py
campaign/rig/orchestrator.py
campaign/rig/postgres.py
campaign/soak.py
cli/_support/inspection.py
cli/_support/plain_help.py
cli/_support/prompts.py
fleet/fleet.py
inspect/describe.py
orchestrator/api/answers.py
orchestrator/api/app.py
orchestrator/api/audit.py
orchestrator/api/beacons.py
orchestrator/api/coverage.py
orchestrator/api/docs.py
orchestrator/api/firmwares.py
orchestrator/api/metrics.py
orchestrator/api/mirrors.py
orchestrator/api/rollouts.py
orchestrator/api/session.py
orchestrator/api/sites.py
orchestrator/api/unconfirmed.py
orchestrator/api/webhooks.py
orchestrator/core/health.py
orchestrator/core/credential_cache.py
orchestrator/db/schema.py
orchestrator/db/tables/attempts.py
orchestrator/db/tables/beacons.py
orchestrator/db/tables/mirror_books.py
orchestrator/db/tables/changes.py
orchestrator/db/tables/device_types.py
orchestrator/db/tables/events.py
orchestrator/db/tables/firmwares.py
orchestrator/db/tables/former_beacons.py
orchestrator/db/tables/mirror_watch.py
orchestrator/db/tables/mirrors.py
orchestrator/db/tables/outbox.py
orchestrator/db/tables/outcomes.py
orchestrator/db/tables/prepared.py
orchestrator/db/tables/roaming.py
orchestrator/db/tables/rollouts.py
orchestrator/db/tables/sessions.py
orchestrator/db/tables/sites.py
orchestrator/db/tables/statistics.py
orchestrator/db/tables/tokens.py
orchestrator/db/tables/webhooks.py
orchestrator/http/asgi.py
orchestrator/http/body_limit.py
orchestrator/http/problems.py
orchestrator/http/throttle.py
orchestrator/mirror/engine.py
orchestrator/mirror/images.py
orchestrator/releases/multipart.py
orchestrator/releases/serve.py
orchestrator/releases/validate.py
orchestrator/rollout/fields.py
orchestrator/rollout/stopping.py
orchestrator/rollout/types.py
orchestrator/server/cluster.py
orchestrator/server/listen.py
orchestrator/server/mdns.py
orchestrator/server/start.py
orchestrator/server/subprocess.py
orchestrator/settings.py
virtual/beacon.py
virtual/clock.py
virtual/flash/esp_errors.py
virtual/flash/nvs_page.py
virtual/flash/otadata.py
virtual/net/dns.py
virtual/net/link.py
virtual/net/proxy.py
virtual/net/shaper.py
virtual/net/wlan.py
virtual/process/session.py
virtual/radio/adapter.py
virtual/radio/advertiser.py
virtual/radio/attributes.py
virtual/radio/client.py
virtual/radio/controller.py
virtual/radio/events.py
virtual/radio/interfaces.py
virtual/radio/link.py
virtual/radio/observer.py
virtual/radio/space.py
virtual/radio/stack.py
virtual/reactor.py
"""


def module_of(path: Path) -> str:
    """Return the dotted name of a module, below beacon_ota; a package's is its folder's."""
    parts = path.relative_to(HOST).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in sorted(HOST.rglob("*.py")) if DEVICE not in path.parents}


def imported(name: str, path: Path) -> Iterator[str]:
    """Yield the modules that a module imports, wherever in it; a package stands for its own."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            whole = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package[: len(package) - node.level + 1]
                base = ".".join(["beacon_ota", *above, *([base] if base else [])])
            whole = []
            for alias in node.names:
                inside = f"{base}.{alias.name}"
                whole.append(inside if inside.partition(".")[2] in FILES else base)
        else:
            continue
        for one in whole:
            if one == "beacon_ota" or one.startswith("beacon_ota."):
                yield one.partition(".")[2]


ARROWS = {
    (name, other)
    for name, path in FILES.items()
    for other in imported(name, path)
    if other in FILES and other != name
}


def room_of(name: str, folder: str) -> str | None:
    """Return which child of a folder a module is in; "" for what the folder itself offers."""
    if name == folder:
        return ""
    prefix = folder + "." if folder else ""
    return name[len(prefix) :].split(".")[0] if name.startswith(prefix) else None


def arrows_in(folder: str) -> dict[str, set[str]]:
    """Return which child of a folder imports which other."""
    found: dict[str, set[str]] = {}
    for name, other in ARROWS:
        here, there = room_of(name, folder), room_of(other, folder)
        if here is not None and there is not None and here != there:
            found.setdefault(here, set()).add(there)
    return found


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Return rooms that import each other in a circle, [] when there is none."""
    done: set[str] = set()

    def walk(room: str, way: list[str]) -> list[str]:
        if room in way:
            return way[way.index(room) :]
        if room in done:
            return []
        for other in sorted(arrows.get(room, ())):
            if found := walk(other, [*way, room]):
                return found
        done.add(room)
        return []

    for room in sorted(arrows):
        if found := walk(room, []):
            return found
    return []


def rooms_of_the_orchestrator() -> dict[str, set[str]]:
    """Return every room, and which others it imports; single modules are the ground."""
    alone = {path.stem for path in (HOST / "orchestrator").glob("*.py")} | {""}
    rooms = {path.parent.name for path in (HOST / "orchestrator").glob("*/__init__.py")}
    found: dict[str, set[str]] = {room: set() for room in rooms | {GROUND}}
    for room, others in arrows_in("orchestrator").items():
        for other in others:
            here, there = (GROUND if one in alone else one for one in (room, other))
            if here != there:
                found[here].add(there)
    return found


def drawn() -> dict[str, tuple[int, set[str]]]:
    """Return the table of the page: room -> floor, and the rooms that it may import."""
    found = {}
    for floor, names, others in ROW.findall(PAGE.read_text()):
        for name in re.findall(r"`([\w.]+)/?`", names):
            room = GROUND if name.endswith(".py") else name
            found[room] = int(floor), set(re.findall(r"`(\w+)`", others))
    return found


def ground_on_the_page() -> set[str]:
    """Return the single modules that the page names."""
    text = " ".join(names for _, names, _ in ROW.findall(PAGE.read_text()))
    return set(re.findall(r"`(\w+\.py)`", text))


def test_the_page_names_every_room():
    assert set(drawn()) == set(rooms_of_the_orchestrator())
    there = {path.name for path in (HOST / "orchestrator").glob("*.py")} - {"__init__.py"}
    assert ground_on_the_page() == there


@pytest.mark.parametrize("room", sorted(rooms_of_the_orchestrator()))
def test_a_room_imports_what_the_page_says(room):
    assert rooms_of_the_orchestrator()[room] - {GROUND} == drawn()[room][1]


def test_arrows_lead_down():
    floors = drawn()
    up = {
        f"{room} -> {other}"
        for room, others in rooms_of_the_orchestrator().items()
        for other in others
        if floors[other][0] >= floors[room][0]
    }
    assert not up


FOLDERS = sorted({"", *(name for name, path in FILES.items() if path.name == "__init__.py")})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder or "beacon_ota")
def test_no_circle(folder):
    assert not circle(arrows_in(folder))


def test_a_circle_would_be_found():
    assert circle({"a": {"b"}, "b": {"c", "d"}, "c": {"a"}}) == ["a", "b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []


def untested() -> set[str]:
    """Return modules, as paths below host/beacon_ota, without a test at the same path."""
    found = set()
    for path in FILES.values():
        name = path.relative_to(HOST).as_posix()
        if path.name == "__init__.py" or name.startswith(ELSEWHERE):
            continue
        if not any(name.startswith(folder + "/") for folder in MIRRORED):
            continue
        beside = ROOT / "tests" / path.relative_to(HOST).parent
        tests = (beside / f"test_{path.stem}{kind}.py" for kind in ("", "_prop"))
        if not any(test.exists() for test in tests):
            found.add(name)
    return found


def test_modules_have_tests_of_their_own():
    known = set(WITHOUT.split())
    assert not untested() - known, "no test at the module's path"
    assert not known - untested(), "these have one now, or are gone: take them off the list"
