"""Names in prose exist: in docstrings, in the firmware's comments, in README and docs.

A name that was renamed in the code and not in a sentence leads a reader nowhere.
"""

import ast
import builtins
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HOST = sorted((ROOT / "host").rglob("*.py"))
FIRMWARE = sorted((ROOT / "firmware").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

ROLE = re.compile(r":(?:func|meth|class|mod|data|attr|exc|obj):`[~!]?\.?([\w.]+)(?:\(\))?`")
# A whole span of code that is one name, dotted or called: `name()`, `module.name`, `NAME`.
SPAN = re.compile(r"(?<!`)(``?)([^`\n]+)\1(?!`)")
NAME = re.compile(r"[A-Za-z_][\w.]*")
PLAIN_CALL = re.compile(r"(?<![`\w.])([A-Za-z_]\w*(?:\.\w+)*)\(\)")
FILE = re.compile(r"(?<![\w./*<-])((?:[\w-]+/)*[A-Za-z_]\w*\.py)\b")
# A name of ours by its look, though it is not called: _PRIVATE, UPPER_CASE, CamelCase.
OURS = re.compile(r"_[A-Za-z]\w*|[A-Z][A-Z0-9]*_[A-Z0-9_]+|(?:[A-Z][a-z0-9]+){2,}")

# Of others: ESP-IDF and the ROM, MicroPython and its library, Python's, libraries' and databases'.
ELSEWHERE = frozenset(
    """
    """.split()
)
FILES_ELSEWHERE = frozenset(
    """
    """.split()
)


def defined(tree: ast.AST) -> Iterator[str]:
    """Yield every name that a module defines: also locals, arguments, attributes and imports."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.ClassDef(name=name) | ast.arg(arg=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name
            case ast.alias(name=name, asname=other):
                yield (other or name).split(".")[-1]
                yield name.split(".")[0]
            case ast.keyword(arg=str(name)):
                yield name


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def own(path: Path) -> frozenset[str]:
    """Return the names that one module defines or imports."""
    return frozenset(defined(tree_of(path)))


@cache
def names(where: str) -> frozenset[str]:
    """Return the names that ``host``, ``firmware`` or both define, modules and folders too."""
    paths = {"host": HOST, "firmware": FIRMWARE, "all": [*HOST, *FIRMWARE]}[where]
    found: set[str] = set()
    for path in paths:
        found |= own(path)
        found.update(path.relative_to(ROOT).with_suffix("").parts)
    return frozenset(found)


@cache
def spoken() -> frozenset[str]:
    """Return the words in the code's own strings: keys of JSON, columns, environment variables."""
    found: set[str] = set()
    for path in (*HOST, *FIRMWARE):
        tree = tree_of(path)
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if id(node) not in docs:
                    found.update(re.findall(r"\w+", node.value))
    return frozenset(found)


def exists(name: str, near: frozenset[str], where: str) -> bool:
    """Tell whether a name in prose means something: near it, in the code base, or elsewhere.

    Every part of a dotted name has to exist, the last one in the code or in ``ELSEWHERE``.
    """
    if name in ELSEWHERE or name.split(".")[0] in ELSEWHERE:
        return True
    return all(
        part in near or part in names(where) or part in ELSEWHERE or hasattr(builtins, part)
        for part in name.split(".")
        if part
    )


@cache
def files() -> frozenset[str]:
    """Return every way to name one of our files: a.py, b/a.py, …"""
    found: set[str] = set()
    for path in (*HOST, *FIRMWARE, *TESTS, *ROOT.glob("tools/**/*.py")):
        parts = path.relative_to(ROOT).parts
        found.update("/".join(parts[n:]) for n in range(len(parts)))
    return frozenset(found)


def missing_files(text: str) -> Iterator[str]:
    for name in FILE.findall(text):
        if name not in files() and name not in FILES_ELSEWHERE:
            yield name


def comments(path: Path) -> Iterator[str]:
    """Yield the blocks of comments of a module, each as one text."""
    block: list[str] = []
    last = -2
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.COMMENT:
            if token.start[0] != last + 1 and block:
                yield " ".join(block)
                block = []
            block.append(token.string.lstrip("# "))
            last = token.start[0]
    if block:
        yield " ".join(block)


def docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if text := ast.get_docstring(node):
                yield text


def wrong_in_python(path: Path, where: str) -> list[str]:
    wrong: list[str] = []
    near = own(path)
    for text in docstrings(path):
        wrong += [name for name in ROLE.findall(text) if not exists(name, near, where)]
    for text in (*docstrings(path), *comments(path)):
        text = ROLE.sub("", text)
        wrong += missing_files(text)
        wrong += [name for name in PLAIN_CALL.findall(text) if not exists(name, near, where)]
        for _, span in SPAN.findall(text):
            name = span.removesuffix("()")
            if NAME.fullmatch(name) and (name != span or OURS.fullmatch(name)):
                if not exists(name, near | spoken(), where):
                    wrong.append(span)
    return wrong


def wrong_in_page(text: str) -> list[str]:
    wrong = [*missing_files(text)]
    wrong += [name for name in PLAIN_CALL.findall(text) if not exists(name, frozenset(), "all")]
    for _, span in SPAN.findall(text):
        name = span.removesuffix("()")
        if not NAME.fullmatch(name) or name.endswith(".py"):
            continue
        called = name != span
        if not exists(name, frozenset() if called else spoken(), "all"):
            if called or "_" in name or OURS.fullmatch(name):
                wrong.append(span)
    return wrong


@pytest.mark.parametrize("path", HOST, ids=lambda p: str(p.relative_to(ROOT / "host")))
def test_docstrings_and_comments_of_the_host(path):
    assert wrong_in_python(path, "all") == []


@pytest.mark.parametrize("path", FIRMWARE, ids=lambda p: str(p.relative_to(ROOT / "firmware")))
def test_comments_of_the_firmware(path):
    assert wrong_in_python(path, "firmware") == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_pages(page):
    assert wrong_in_page(page.read_text()) == []
