"""What README and docs say exists: links lead somewhere, commands and their options are there."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from beacon_ota.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
LINK = re.compile(r"\]\(([^)\s]+)\)")
HELP = {"-h", "--help"}


def commands(text: str) -> Iterator[str]:
    """Yield the lines of code blocks that call beacon-ota, as a shell would run them."""
    fenced = False
    for line in text.replace("\\\n", " ").splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            for part in re.split(r"&&|\||;", line.split(" #")[0]):
                part = re.sub(r"^\s*\$\s+", "", part).strip()
                if part.startswith("beacon-ota "):
                    yield part


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page):
    dead = [
        target
        for target in LINK.findall(page.read_text())
        if not target.startswith(("http://", "https://", "#", "mailto:"))
        and not (page.parent / target.split("#")[0]).exists()
    ]
    assert dead == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_are_there(page):
    root = typer.main.get_command(app)
    wrong = []
    for line in commands(page.read_text()):
        words = shlex.split(line.replace("…", ""))[1:]
        context, command = typer.Context(root), root
        while words and hasattr(command, "get_command") and not words[0].startswith("-"):
            if (command := command.get_command(context, words[0])) is None:  # type: ignore[attr-defined]
                break
            words = words[1:]
        if command is None:
            wrong.append(line)
            continue
        known = {
            option for param in command.params for option in (*param.opts, *param.secondary_opts)
        }
        given = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        if given - known - HELP:
            wrong.append(f"{line}  [{', '.join(sorted(given - known))}]")
    assert wrong == []


def test_they_are_found_at_all():
    """The two checks above look at something."""
    found = [line for page in PAGES for line in commands(page.read_text())]
    assert len(found) > 30
