"""docs/limits.md names every limit, with its value and its place."""

import ast
import importlib
import re
from dataclasses import fields
from pathlib import Path

import pytest

from beacon_ota.orchestrator.limits import KIB, LIMITS

ROOT = Path(__file__).parents[2]
ORCHESTRATOR = ROOT / "host" / "beacon_ota" / "orchestrator"
PAGE = (ROOT / "docs" / "limits.md").read_text()
SHARED = re.findall(
    r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", PAGE, re.MULTILINE
)
LOCAL = re.findall(
    r"^\| `([\w/]+\.py)` `(\w+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", PAGE, re.MULTILINE
)
ROOMS = ("beacon_api", "api", "http", "server", "webhooks", "releases", "blobs", "dashboard")
FACTORS = {"KiB": KIB, "MiB": KIB * KIB}


def number(text: str) -> float:
    """Return the number that a cell of the page stands for, in bytes, seconds or pieces."""
    match = re.fullmatch(r"([\d,.]+)(?: (KiB|MiB|s|bytes))?", text.strip())
    assert match is not None, text
    return float(match[1].replace(",", "")) * FACTORS.get(match[2], 1)


def test_the_page_names_every_shared_limit_once():
    names = [name for name, *_ in SHARED]
    assert names == [one.name for one in fields(LIMITS)]


@pytest.mark.parametrize("row", SHARED, ids=lambda row: row[0])
def test_a_shared_limit_has_its_value_its_reason_and_its_places(row):
    name, value, meaning, reason, places = row
    assert number(value) == getattr(LIMITS, name)
    assert meaning.strip() and reason.strip()
    if places.startswith("firmware/"):
        file, constant = re.fullmatch(r"(\S+) \(`(\w+)`\) ?", places + " ").groups()  # type: ignore[union-attr]
        found = re.search(rf"^{constant} = const\((\d+)\)", (ROOT / file).read_text(), re.MULTILINE)
        assert found is not None and int(found[1]) == getattr(LIMITS, name)
        return
    used = {
        str(path.relative_to(ORCHESTRATOR))
        for path in ORCHESTRATOR.rglob("*.py")
        if re.search(rf"\bLIMITS\.{name}\b", path.read_text())
    }
    assert set(places.split()) == used


def numeric_constants() -> dict[tuple[str, str], float]:
    """Return the numbers that modules of these rooms have for themselves: (file, name) -> value."""
    found = {}
    for room in ROOMS:
        for path in sorted((ORCHESTRATOR / room).rglob("*.py")):
            for node in ast.parse(path.read_text()).body:
                if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
                    continue
                name = node.targets[0].id
                try:
                    value = eval(compile(ast.Expression(node.value), "", "eval"), {})
                except Exception:
                    continue  # made of other names
                if name.isupper() and isinstance(value, int | float) and name != "LEADER_LOCK_ID":
                    found[str(path.relative_to(ORCHESTRATOR)), name] = value
    return found


def test_the_page_names_every_limit_of_a_single_module():
    assert {(file, name) for file, name, *_ in LOCAL} == set(numeric_constants())
    assert len(LOCAL) == len(numeric_constants()) > 40


@pytest.mark.parametrize("row", LOCAL, ids=lambda row: f"{row[0]}-{row[1]}")
def test_a_modules_limit_has_its_value(row):
    file, name, value, meaning, reason = row
    module = importlib.import_module("beacon_ota.orchestrator." + file[:-3].replace("/", "."))
    assert number(value) == getattr(module, name)
    assert meaning.strip() and reason.strip()


def test_limits_stand_in_one_place():
    """The modules of HTTP have no numbers of their own."""
    for name in (
        "http/protocol.py",
        "http/body_limit.py",
        "http/asgi.py",
        "core/hub.py",
        "server/tls.py",
    ):
        text = (ORCHESTRATOR / name).read_text()
        found = re.findall(r"^_[A-Z_]+ = [\d_]{3,}", text, re.MULTILINE)
        assert not found, (name, found)
