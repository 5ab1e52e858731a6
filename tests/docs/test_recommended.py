"""Every command that a message, a help text or a page of the dashboard recommends exists."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import typer.main

from beacon_ota.cli import TABLE, app

HOST = Path(__file__).parents[2] / "host" / "beacon_ota"
SOURCES = sorted(HOST.rglob("*.py"))
PAGES = sorted([*HOST.rglob("*.html"), *HOST.rglob("*.js")])
# `beacon-ota rollout create …`, up to what cannot be part of a command; or a span without the name.
WHOLE = re.compile(r"beacon-ota ((?:[A-Za-z0-9_{}./=-]+ ?)+)")
SPAN = re.compile(
    rf"(?:`|<code>)((?:{'|'.join(TABLE)}) [a-z-]+(?: [A-Za-z0-9_{{}}./=-]+)*)(?:`|</code>)"
)


def texts(file: Path) -> Iterator[str]:
    """Yield what a file shows to people: the texts of a module, its docstrings aside; a page."""
    if file.suffix != ".py":
        yield file.read_text()
        return
    tree = ast.parse(file.read_text())
    hidden = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef) and ast.get_docstring(node) is not None:
            hidden.add(node.body[0].value)  # type: ignore[attr-defined]
    parts = {
        part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values
            )
        elif isinstance(node, ast.Constant) and node not in hidden | parts:
            yield from [node.value] if isinstance(node.value, str) else []


def recommended(file: Path) -> Iterator[str]:
    for text in texts(file):
        text = re.sub(r"\[/?[a-z ]*\]", "|", text)  # rich's markup
        yield from (one.strip().rstrip(".") for one in WHOLE.findall(text))
        yield from SPAN.findall(text)


def find_fault(line: str) -> str:
    """Return the name or the options of a command that are not there, "" for none."""
    command = typer.main.get_command(app)
    context = typer.Context(command)
    words = line.split()
    while words and hasattr(command, "get_command"):
        if words[0] == "{}":
            return ""  # which one is known only to the program that says it
        if not re.fullmatch(r"[a-z][a-z-]*", words[0]):
            break
        found = command.get_command(context, words[0])  # type: ignore[attr-defined]
        if found is None:
            return f"no command {words[0]!r}"
        command, words = found, words[1:]
    known = {one for param in command.params for one in (*param.opts, *param.secondary_opts)}
    given = {word.split("=")[0] for word in words if re.match(r"--[a-z]", word)}
    return ", ".join(sorted(given - known - {"--help"}))


@pytest.mark.parametrize("file", [*SOURCES, *PAGES], ids=lambda file: str(file.relative_to(HOST)))
def test_what_is_recommended_exists(file):
    wrong = {line: fault for line in recommended(file) if (fault := find_fault(line))}
    assert wrong == {}


def test_they_are_found_at_all():
    found = {line for file in (*SOURCES, *PAGES) for line in recommended(file)}
    assert len(found) > 40
    assert {"rollout plan VERSION", "release list", "keys new spare"} <= found
    assert any(line.startswith("token new NAME --role") for line in found)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("rollout start VERSION", "no command 'start'"),
        ("rolout", "no command 'rolout'"),
        ("rollout create VERSION --windw x", "--windw"),
        ("rollout create {} --preset emergency", ""),
        ("site add", ""),
    ],
)
def test_what_does_not_exist_is_seen(line, fault):
    assert find_fault(line) == fault
