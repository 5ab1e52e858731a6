"""The command line itself: help that says what it was given, completion, a quick start."""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from beacon_ota.cli import TABLE
from beacon_ota.cli._support import plain_help

COMMAND = Path(sys.executable).with_name("beacon-ota")
# What takes its time to import, and no help has any use for.
HEAVY = {
    "alembic",
    "bleak",
    "bumble",
    "cryptography",
    "esptool",
    "fastapi",
    "littlefs",
    "prometheus_client",
    "requests",
    "rich.markdown",
    "sqlalchemy",
    "uvicorn",
    "zeroconf",
}


def there(name: str) -> bool:
    return importlib.util.find_spec(f"beacon_ota.cli.{TABLE[name].module}") is not None


def run(*args: str, **environment: str) -> str:
    done = subprocess.run(
        [COMMAND, *args],
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def texts(command, name: str):
    """Yield (name, every help text) of a command and of all below it."""
    subs = getattr(command, "commands", {})
    for key, sub in subs.items():
        yield from texts(sub, f"{name} {key}")
    if not subs:
        yield name, [command.help, *(p.help for p in command.params if p.help and not p.hidden)]


@pytest.mark.parametrize("name", TABLE)
def test_every_word_of_a_help_text_is_shown(name):
    """Also those in brackets, which markup would take away."""
    if not there(name):
        pytest.skip("not built yet")
    module = importlib.import_module(f"beacon_ota.cli.{TABLE[name].module}")
    command = plain_help.build_command(module.app)
    for words, said in texts(command, name):
        target, path = command, words.split()[1:]
        for part in path:
            target = target.commands[part]
        context = target.make_context(words, [], resilient_parsing=True)
        shown = " ".join(target.get_help(context).split())
        for text in said:
            assert " ".join(text.replace("\b", "").split()) in shown, (words, text)


def test_without_arguments_it_says_what_there_is():
    listed = subprocess.run([COMMAND], capture_output=True, text=True, timeout=60).stdout
    for name, entry in TABLE.items():
        assert name in listed and entry.help in listed


def test_unknown_commands_and_options_are_named():
    for args, said in ((("nonsense",), "nonsense"), (("keys", "list", "--odd"), "--odd")):
        done = subprocess.run([COMMAND, *args], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and said in done.stderr and not done.stdout


def test_help_imports_nothing_that_takes_time():
    """All groups in one process: what any of them imports too early is found."""
    names = [name for name in TABLE if there(name)]
    script = f"""
import contextlib, io, json, sys
from beacon_ota.cli import main
for name in {names!r}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main([name, "--help"])
print(json.dumps(sorted(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    loaded = set(json.loads(done.stdout))
    assert not loaded & HEAVY


def complete(line: str, **environment: str) -> list[str]:
    """What bash would be told at a Tab."""
    words = line.split(" ")
    told = run(
        _BEACON_OTA_COMPLETE="complete_bash",
        COMP_WORDS=line,
        COMP_CWORD=str(len(words) - 1),
        **environment,
    )
    return told.split()


def test_completion():
    assert complete("beacon-ota ro") == ["rollout"]
    assert {"plan", "create", "halt"} <= set(complete("beacon-ota rollout "))
    assert "--preset" in complete("beacon-ota rollout plan 1.0.0 --pre")
    assert complete("beacon-ota rollout plan 1.0.0 --preset em") == ["emergency"]
    assert complete("beacon-ota token new x --role o") == ["operator"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_out_of_the_table(shell):
    """With what each command is for, and without importing any of them."""
    told = run(
        _BEACON_OTA_COMPLETE=f"complete_{shell}",
        _TYPER_COMPLETE_ARGS="beacon-ota ",
        _TYPER_COMPLETE_FISH_ACTION="get-args",
    )
    assert all(name in told for name in TABLE)
    assert TABLE["keys"].help in told


def test_completion_without_a_server_is_silent(tmp_path):
    nobody = {"BEACON_OTA_URL": "http://127.0.0.1:9", "BEACON_OTA_CONFIG": str(tmp_path)}
    assert complete("beacon-ota release show 1", **nobody) == []
    assert complete("beacon-ota rollout show ", **nobody) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_installing_completion(tmp_path, shell):
    # Which shell it is, is found out from the parent process otherwise.
    told = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    run("--install-completion", shell, **told)
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert any("_BEACON_OTA_COMPLETE" in text for text in written)
    assert "_BEACON_OTA_COMPLETE" in run("--show-completion", shell, **told)


def commands(command, name: str):
    """Yield (words, command) of everything that can be run."""
    subs = getattr(command, "commands", {})
    for key, sub in subs.items():
        yield from commands(sub, f"{name} {key}")
    if not subs:
        yield name, command


def test_what_is_listed_can_be_read_by_scripts_and_what_is_lost_is_asked_about():
    listing, asking = 0, 0
    for name in filter(there, TABLE):
        module = importlib.import_module(f"beacon_ota.cli.{TABLE[name].module}")
        for words, command in commands(plain_help.build_command(module.app), name):
            options = {text for param in command.params for text in param.opts}
            verb = words.split()[-1]
            if verb in ("list", "show", "status", "attempts", "deliveries", "verify", "inspect"):
                assert "--json" in options, words
                listing += 1
            if verb in ("remove", "revoke", "abort", "advance", "deprecate", "erase", "reset"):
                assert options & {"--yes", "-y"}, words
                asking += 1
    assert listing > 8 and asking > 5
