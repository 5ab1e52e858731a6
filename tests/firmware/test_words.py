"""Every word that the firmware can write into its journal, or name an attempt's end with, is one.

Found in the sources, so that a word which is too long is seen here and not at a beacon.
"""

import ast

import pytest

from beacon_ota import paths
from beacon_ota.wire import report

FIRMWARE = paths.data_path("firmware")
# What is called with words: the name of the function, and which of its arguments are some.
CALLS = {
    "write": (0, 1),  # of the journal; a slot's writer has no text
    "_code_of_reset": (0,),
    "journal_write": (0,),
    "start": (0,),  # a task, journalled when it dies
    "Verdict": (0, 1),
    "HttpError": (0,),
    "Unsealed": (0,),
    "FlashError": (0,),
    "Refused": (0,),
    "Fault": (0,),
}
TABLES = ("_WORDS", "CODES", "STATUSES", "FINAL", "_WITNESS", "_REFUSALS")


def texts(node: ast.AST):
    for one in ast.walk(node):
        if isinstance(one, ast.Constant) and isinstance(one.value, str):
            yield one.value


def words():
    for file in sorted(FIRMWARE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            found: list[str] = []
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                for place in CALLS.get(name, ()):
                    if place < len(node.args):
                        found += texts(node.args[place])
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    name = getattr(target, "id", getattr(target, "attr", ""))
                    if name in TABLES or name in ("stage", "code", "state"):
                        found += texts(node.value)
                    elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                        pairs = zip(target.elts, node.value.elts, strict=True)
                        for part, value in pairs:
                            if getattr(part, "id", "") in ("stage", "code"):
                                found += texts(value)
            for word in found:
                if word:
                    yield file.relative_to(FIRMWARE), getattr(node, "lineno", 0), word


FOUND = list(words())


@pytest.mark.parametrize(("file", "line", "word"), FOUND, ids=lambda part: str(part))
def test_a_word_is_one(file, line, word):
    assert report.is_word(word), f"{file}:{line}: {word!r}"


def test_the_words_are_found():
    known = {word for _, _, word in FOUND}
    assert {"handshake", "rescue", "no_ap", "unsealed", "self_test", "agent"} <= known
    assert {code for codes in report.CODES.values() for code in codes} <= known


def test_what_is_told_as_an_end_is_in_the_contract():
    """Stage and code of an attempt's end are those that the orchestrator counts by."""
    codes = {code for codes in report.CODES.values() for code in codes}
    for kind in ("FlashError", "HttpError", "Unsealed", "Refused", "Verdict"):
        for file in sorted((FIRMWARE / "app").rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == kind:
                    place = 1 if kind == "Verdict" else 0
                    for code in texts(node.args[place]) if place < len(node.args) else ():
                        assert not code or code in codes, f"{file}:{node.lineno}: {code}"
