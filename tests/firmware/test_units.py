"""The device's own suites, ``mp_*.py``, run under MicroPython only."""

from pathlib import Path

import pytest

from tests import micropython

SUITES = sorted(Path(__file__).parent.glob("mp_*.py"))


@pytest.mark.parametrize("suite", SUITES, ids=lambda file: file.stem)
def test_unit(suite):
    done = micropython.run(suite)
    assert done.returncode == 0, done.stdout + done.stderr
