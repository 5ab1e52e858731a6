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
FORM = re.compile(r"[A-Za-z_][\w.]*(\(.*\)|(\[.*\])+)?")  # name, name(…), name[…]
INDEX = re.compile(r"^ {4}([a-z_]\w*)\(")
MODULES = re.compile(r"^\| (`[a-z_]+/[\w/]*`(?:[, ]+`\w+`)*) \|", re.MULTILINE)
PLAIN_CALL = re.compile(r"(?<![`\w.])([A-Za-z_]\w*(?:\.\w+)*)\(\)")
FILE = re.compile(r"(?<![\w./*<-])((?:[\w-]+/)*[A-Za-z_]\w*\.py)\b")
# A name of ours by its look, though it is not called: _PRIVATE, UPPER_CASE, CamelCase.
OURS = re.compile(r"_[A-Za-z]\w*|[A-Z][A-Z0-9]*_[A-Z0-9_]+|(?:[A-Z][a-z0-9]+){2,}")

# Of others: ESP-IDF and the ROM, MicroPython, Python and its libraries, Linux, protocols.
_ELSEWHERE = """
    esp_err_t esp_ota_get_boot_partition esp_ota_get_next_update_partition
    esp_ota_mark_app_valid_cancel_rollback esp_ota_set_boot_partition nvs_flash_init
    esp_image_format.c esp_app_desc.h esp_flash_partitions.h bootloader_common_loader.c
    Pin disconnect readinto rxbuf set_boot wait_for esp32_nvs.c
    characteristic.max_write_without_response_size cryptography ipaddress rich
    AWS_ACCESS_KEY_ID GOOGLE_APPLICATION_CREDENTIALS hci1 nohup
    DBUS_SYSTEM_BUS_ADDRESS bluetoothd dbus_fast
    ConfirmationKeys HttpOnly LE_LL_WITH_PHDR MasseyWifi rule_files
"""
ELSEWHERE = frozenset(_ELSEWHERE.split())
# Words that the code puts together: "poll_" and the code of an HttpError.
MADE = frozenset({"poll_connect", "poll_stall", "poll_http", "attempts_total"})
# Of ESP-IDF and MicroPython, and an example.
FILES_ELSEWHERE = frozenset({"gen_esp32part.py", "_boot.py", "inisetup.py", "a/b.py"})


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
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and id(node) not in docs:
                found.update(re.findall(r"\w+", text))
    return frozenset(found)


@cache
def definitions(path: Path) -> frozenset[str]:
    return frozenset(_definitions(tree_of(path)))


def _definitions(tree: ast.AST) -> Iterator[str]:
    """Yield what a module, its classes and its functions define, without locals and arguments."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.ClassDef(name=name) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name
            case ast.alias(name=name, asname=other):
                yield (other or name).split(".")[-1]
        if isinstance(node, ast.Module | ast.ClassDef):
            for line in node.body:
                targets = getattr(line, "targets", [getattr(line, "target", None)])
                for target in targets:
                    for part in ast.walk(target) if target else ():
                        if isinstance(part, ast.Name):
                            yield part.id


@cache
def near(path: Path) -> frozenset[str]:
    """Return what a module, the modules of its folder and those that it imports define."""
    found = set(path.parent.relative_to(ROOT).parts) | {path.stem}
    imported = {
        word
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for text in (getattr(node, "module", None) or "", *(a.name for a in node.names))
        for word in text.split(".")
    }
    for other in (*HOST, *FIRMWARE):
        beside = other.parent == path.parent
        if beside or (other.stem in imported and other.parts[-2] in (*imported, *path.parts)):
            found.update(definitions(other), [other.stem])
    return frozenset(found)


def exists(name: str, known: frozenset[str], where: str) -> bool:
    """Tell whether a name in prose means something: known here, in the code base, or elsewhere.

    Names of one word are common: a renamed one would be found somewhere by chance. They have to
    be known here.
    """
    if {name, name.split(".")[0]} & (ELSEWHERE | MADE | FILES_ELSEWHERE):
        return True
    parts = [part for part in name.split(".") if part]
    if len(parts) == 1 and "_" not in name.strip("_") and not re.search(r"[a-z][A-Z]", name):
        return name in known or name in ELSEWHERE or hasattr(builtins, name)
    return all(
        part in known or part in names(where) or part in ELSEWHERE or hasattr(builtins, part)
        for part in parts
    )


@cache
def said_in_pages() -> frozenset[str]:
    """Return what a page may name: code, its strings, tests, metrics, and the files beside it."""
    found = set(names("all") | spoken() | MADE)
    for path in TESTS:
        found.add(path.stem)
        found.update(definitions(path))
    for path in (ROOT / "docs").rglob("*"):
        if path.suffix in (".yml", ".conf", ".service", ".json"):
            found.update(re.findall(r"\w+", path.read_text()))
    return frozenset(found)


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
            yield ast.get_docstring(node) or ""


def wrong_in_python(path: Path, where: str) -> list[str]:
    wrong: list[str] = []
    here = near(path)
    for text in docstrings(path):
        wrong += [name for name in ROLE.findall(text) if not exists(name, here, where)]
        for line in text.splitlines()[1:]:  # an index: name(arguments)   what it does
            wrong += [n for n in INDEX.findall(line) if not exists(n, here | own(path), where)]
    for text in (*docstrings(path), *comments(path)):
        text = ROLE.sub("", text)
        wrong += missing_files(text)
        wrong += [n for n in PLAIN_CALL.findall(text) if not exists(n, here | own(path), where)]
        for _, span in SPAN.findall(text):
            if (match := NAME.match(span)) and FORM.fullmatch(span):
                name = match[0].rstrip(".")
                called = "(" in span
                known = here | own(path) if called or name.isupper() else names(where)
                known = known if called else known | spoken()
                if not exists(name, known, where):
                    wrong.append(span)
    return wrong


def missing_modules(text: str) -> Iterator[str]:
    """Yield the modules that do not exist in first cells such as ``| `net/wifi` `dns` |``."""
    stems = {name.removesuffix(".py") for name in files()}
    folders = {"/".join(Path(name).parts[:-1]) for name in files()}
    for cell in MODULES.findall(text):
        folder = ""
        for name in re.findall(r"`([^`]+)`", cell):
            if "/" in name:
                folder = name.rsplit("/", 1)[0] + "/"
            full = name if "/" in name else folder + name
            if full.rstrip("/") not in stems | folders | files():
                yield full


def wrong_in_page(text: str) -> list[str]:
    wrong = [*missing_files(text), *missing_modules(text)]
    wrong += [name for name in PLAIN_CALL.findall(text) if not exists(name, names("all"), "all")]
    for _, span in SPAN.findall(text):
        name = span.removesuffix("()")
        if not NAME.fullmatch(name) or name.endswith(".py"):
            continue
        called = name != span
        known = names("all") if called else said_in_pages()
        metric = name.removeprefix("beacon_ota_")
        looks_like_ours = called or "_" in name or OURS.fullmatch(name)
        if looks_like_ours and metric not in known and not exists(name, known, "all"):
            wrong.append(span)
    return wrong


def test_docstrings_and_comments_of_the_host():
    found = {str(p.relative_to(ROOT)): wrong_in_python(p, "all") for p in HOST}
    assert {path: wrong for path, wrong in found.items() if wrong} == {}


def test_comments_of_the_firmware():
    found = {str(p.relative_to(ROOT)): wrong_in_python(p, "firmware") for p in FIRMWARE}
    assert {path: wrong for path, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_pages(page):
    assert wrong_in_page(page.read_text()) == []


@pytest.mark.parametrize(
    ("path", "prose"),
    [  # each was written once, and the name had gone
        ("rollout/__init__.py", "\n\n    tally(rollout, state, now)     counts"),
        ("rollout/decide.py", "As for :func:`lost`."),
        ("rollout/plans.py", "Gives back what :func:`parse` read."),
        ("core/engine.py", "The caller holds ``moving``."),
        ("core/stop_board.py", "What :meth:`note` writes."),
        ("db/tables/audit.py", "Use :meth:`verify`."),
        ("db/tables/audit.py", "That of an empty log is ``START``."),
        ("core/engine.py", "Called after settle.py has run."),
    ],
)
def test_a_name_that_has_gone_is_found(monkeypatch, path, prose):
    module = ROOT / "host" / "beacon_ota" / "orchestrator" / path
    monkeypatch.setattr(f"{__name__}.docstrings", lambda _: iter([f"Text.{prose}"]))
    monkeypatch.setattr(f"{__name__}.comments", lambda _: iter(()))
    assert len(wrong_in_python(module, "all")) == 1


def test_a_module_that_has_gone_is_found_in_a_table():
    table = "| `ota/agent` | polling |\n| `ota/settle` `trial` `known` | this boot |\n"
    assert wrong_in_page(table) == ["ota/settle", "ota/known"]


def test_a_name_that_has_gone_is_found_in_a_page():
    assert wrong_in_page("`draw_id` tries; `begin_rollout()` too; see settle.py.") == [
        "settle.py",
        "draw_id",
        "begin_rollout()",
    ]
