"""The device's own suites, ``mp_*.py``, run under MicroPython only.

The heap is the C3's unless the first line says otherwise (``# heap: 4M``): a suite that keeps a
whole chip's flash in RAM needs room for it.
"""

import re
from pathlib import Path

import pytest

from tests import micropython

SUITES = sorted(Path(__file__).parent.glob("mp_*.py"))


@pytest.mark.parametrize("suite", SUITES, ids=lambda file: file.stem)
def test_unit(suite):
    named = re.match(r"# heap: (\w+)\n", suite.read_text())
    done = micropython.run(suite, heap=named[1] if named else "160K")
    assert done.returncode == 0, done.stdout + done.stderr
