"""Every suite of this folder that imports no pytest runs a second time under MicroPython."""

from pathlib import Path

import pytest

from tests import micropython

HERE = Path(__file__).parent
SUITES = [
    file
    for file in sorted(HERE.glob("test_*.py"))
    if file.name != Path(__file__).name and not file.stem.endswith("_prop")
]


@pytest.mark.parametrize("suite", SUITES, ids=lambda file: file.stem)
def test_under_micropython(suite):
    done = micropython.run(suite, path=(micropython.HOST,))
    assert done.returncode == 0, done.stdout + done.stderr
