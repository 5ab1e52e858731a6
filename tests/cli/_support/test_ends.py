"""SIGTERM and SIGHUP end a command like an interrupt, by an exit code of their own."""

import signal
import subprocess
import sys

import pytest

from tests.orchestrator.world import DEADLINE_S

PROGRAM = """
import os, signal, sys
from beacon_ota.cli._support import ends
with ends.as_interrupts():
    try:
        print("begun", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        os.kill(os.getpid(), {number})  # told again while it cleans up
        print("cleaned up", flush=True)
        raise
"""


def run(number: int, before: str = "") -> tuple[int, str]:
    process = subprocess.Popen(
        [sys.executable, "-c", before + PROGRAM.format(number=number)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    said, _ = process.communicate(timeout=DEADLINE_S)
    return process.returncode, said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("ignored", [False, True], ids=["terminal", "background"])
def test_it_cleans_up(number, ignored):
    """Also where a shell has interrupts ignored, as in the background."""
    before = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" if ignored else ""
    assert run(number, before) == (128 + number, "cleaned up\n")


def test_what_ignores_a_hangup_goes_on_ignoring_it():
    """nohup."""
    program = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from beacon_ota.cli._support import ends\n"
        "with ends.as_interrupts():\n"
        "    signal.raise_signal(signal.SIGHUP)\n"
        "print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert (done.returncode, done.stdout) == (0, "True\n")
