"""What came from elsewhere is printed to the letter; no terminal obeys it."""

import ast
import csv
import io
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.progress import Progress

import beacon_ota.cli
from beacon_ota.console import output
from beacon_ota.errors import InputError
from tests.orchestrator.world import COMMAND, Server, environment, upload

HOSTILE = "\x1b]0;owned\x07\x1b[2J[/b][link=http://evil]x[/]\r\x9b31m\u202egnp.exe\u200b"
TEXTS = st.text(
    st.characters(exclude_categories=()) | st.sampled_from("[]/\\\x1b\x9b\u202e\ud800"),
    max_size=40,
)

HOST = Path(beacon_ota.__file__).parent


def printed(show) -> str:
    """Return what ``show`` prints on a terminal, by a console without colours."""
    file = io.StringIO()
    show(output.SafeConsole(file=file, width=10_000, color_system=None, force_terminal=False))
    return file.getvalue()


@given(TEXTS)
@example(HOSTILE)
@example("ends in a backslash \\")
def test_a_text_from_elsewhere_prop(text):
    text = text.replace("\t", " ").replace("\n", " ")
    found = printed(
        lambda console: output.print_markup("[bold]<{}>[/]", text, to=console, soft_wrap=True)
    )
    assert found == f"<{output.make_visible(text)}>\n"
    found.encode()


@given(TEXTS)
@example(HOSTILE)
def test_no_text_is_obeyed_however_it_is_printed_prop(text):
    def show(console) -> None:
        console.print(output.build_table([{"name": text}], ("name",)))
        console.print(text, markup=False)
        console.print(output.Text(text))

    assert not set(printed(show)) & {chr(code) for code in output._CONTROL_ESCAPES}


def test_signs_of_other_languages_are_left_alone():
    for text in ("Küche 2. OG", "会議室", "غرفة", "🚪 door", "naïve"):
        assert output.make_visible(text) == text


def test_a_bar_still_moves():
    def show(console) -> None:
        with Progress(console=console) as bar:
            bar.update(bar.add_task(output.escape_markup("x"), total=1), completed=1)

    file = io.StringIO()
    show(output.SafeConsole(file=file, width=80, force_terminal=True))
    assert "\x1b[" in file.getvalue()


def test_a_failure_shows_what_was_found(monkeypatch):
    def show(console) -> None:
        monkeypatch.setattr(output, "error_console", console)
        output.print_error(InputError("x", HOSTILE, found=HOSTILE, expected=HOSTILE))

    assert printed(show).count(output.make_visible(HOSTILE)) == 3


def test_nothing_is_printed_but_through_the_one_function():
    """An f-string would put somebody's text where rich reads markup."""
    wrong = []
    for file in [*HOST.glob("cli/**/*.py"), *HOST.glob("console/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            where = f"{file.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ImportFrom) and node.module == "rich.markup":
                wrong += [f"{where} has an escape of its own"] * (file.name != "output.py")
            if not isinstance(node, ast.Call) or not isinstance(
                node.func, ast.Attribute | ast.Name
            ):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            as_is = any(k.arg == "markup" for k in node.keywords)
            composed = bool(node.args) and isinstance(node.args[0], ast.JoinedStr)
            if name in ("print", "say") and composed and not as_is:
                wrong.append(f"{where} prints an f-string")
    assert not wrong


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("output") / "data") as server:
        yield server


def test_hostile_names_in_the_commands(server, tmp_path):
    admin = server.admin()
    firmware = upload(
        admin, "1.1.0", tmp_path, channel="stable", description="[/b] [link=http://evil]x"
    )
    admin.create_beacon("b1", "esp32c3")
    rollout = admin.create_rollout(firmware["firmware_id"], name=HOSTILE)["rollout_id"]
    admin.post_rollout_action(rollout, "halt", HOSTILE)
    for command in (
        ("rollout", "list"),
        ("rollout", "show", rollout),
        ("rollout", "resume", rollout, "--reason", "[/]", "--yes"),
        ("rollout", "halt", rollout, "--reason", HOSTILE),
        ("release", "show", "1.1.0"),
        ("release", "list"),
        ("token", "list"),
        ("audit", "list"),
        ("events", "--latest", "50"),
        ("beacon", "show", HOSTILE),
    ):
        done = subprocess.run(
            [COMMAND, *command],
            env=environment(tmp_path, server),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "Traceback" not in done.stderr, (command, done.stderr)
        assert (done.returncode == 0) == (command[0] != "beacon"), (command, done.stderr)
        shown = set(done.stdout + done.stderr)
        assert not shown & {chr(code) for code in output._CONTROL_ESCAPES}, (command, done.stdout)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "cp437", "utf-8"])
def test_a_terminal_that_lacks_a_sign_gets_another(tmp_path, encoding):
    how = {**os.environ, "PYTHONIOENCODING": encoding, "BEACON_OTA_CONFIG": str(tmp_path)}
    build = ("image", "build", "--synthetic", "--insecure", "--version", "1.0.0", "-o", "x.bin")
    for command in (build, ("keys", "list"), ("--help",), ("image", "--help"), ("site", "list")):
        done = subprocess.run(
            [COMMAND, *command], env=how, cwd=tmp_path, capture_output=True, timeout=100
        )
        said = (done.stdout + done.stderr).decode(encoding)
        assert "Traceback" not in said
        if command is build:
            assert said.startswith("✓ x.bin" if encoding == "utf-8" else "+ x.bin"), said


FORMULAS = ("=HYPERLINK(1)", "+1", "-1+2", "@SUM(A1)", "\t=1", " =1", "＝1")


@pytest.mark.parametrize("text", FORMULAS)
def test_a_field_of_a_csv_is_no_formula(text, capsys):
    output.print_csv([{"name": text, "rssi": -61, "none": None, "plain": "a,b"}])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert rows == [{"name": "'" + text, "rssi": "-61", "none": "", "plain": "a,b"}]


def test_nobody_else_writes_csv():
    root = Path(beacon_ota.cli.__file__).parent.parent
    found = [file for file in root.rglob("*.py") if "csv.writer(" in file.read_text()]
    found += [file for file in root.rglob("*.py") if "csv.DictWriter(" in file.read_text()]
    assert [file.name for file in found] == ["output.py"]


def test_an_argument_that_is_no_text_is_named(tmp_path):
    how = {**os.environ, "BEACON_OTA_CONFIG": str(tmp_path)}
    done = subprocess.run(
        [COMMAND, "beacon", "show", b"b\xfcro", "--url", "http://127.0.0.1:9", "--token", "x"],
        env=how,
        cwd=tmp_path,
        capture_output=True,
        timeout=100,
    )
    said = done.stderr.decode()
    assert done.returncode == 2 and "argument_encoding" in said and "Traceback" not in said
