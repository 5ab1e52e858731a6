"""The limits are documented, each with its figure."""

import re
from dataclasses import fields
from pathlib import Path

from beacon_ota.orchestrator.limits import KIB, LIMITS

DOCS = Path(__file__).parents[2] / "docs" / "security.md"


def test_every_limit_is_in_the_table_with_its_figure():
    found = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", DOCS.read_text(), re.MULTILINE))
    for one in fields(LIMITS):
        value = getattr(LIMITS, one.name)
        match = re.fullmatch(r"([\d,.]+)(?: (KiB|MiB|s|\w+))?", found[one.name].strip())
        assert match is not None, (one.name, found[one.name])
        factor = {"KiB": KIB, "MiB": KIB * KIB}.get(match[2], 1)
        assert float(match[1].replace(",", "")) * factor == value, one.name


def test_the_table_has_no_others():
    text = DOCS.read_text()
    table = text[text.index("### Limits of the orchestrator") :]
    table = table[: table.index("\n## ")] if "\n## " in table else table
    names = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert set(names) == {one.name for one in fields(LIMITS)} and len(names) == len(set(names))


def test_limits_stand_in_one_place():
    """The modules of HTTP hold no figure of their own."""
    folder = Path(__file__).parents[2] / "host" / "beacon_ota" / "orchestrator"
    for name in (
        "http/protocol.py",
        "http/body_limit.py",
        "http/asgi.py",
        "core/hub.py",
        "server/tls.py",
    ):
        found = re.findall(r"^_[A-Z_]+ = [\d_]{3,}", (folder / name).read_text(), re.MULTILINE)
        assert not found, (name, found)
