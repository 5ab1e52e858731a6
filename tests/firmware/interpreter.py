"""A MicroPython interpreter that answers expressions: the device's code, asked from a test."""

import ast
import subprocess

from tests import micropython

LOOP = """
import sys
sys.path[:] = %r
%s
while True:
    line = sys.stdin.readline()
    if not line:
        break
    try:
        print("=", repr(eval(line)))
    except Exception as error:
        print("!", type(error).__name__, error)
"""


class Raised(Exception):
    """What the expression raised: ``name`` is the class, the message its text."""

    def __init__(self, name: str, text: str):
        super().__init__(f"{name}: {text}")
        self.name = name


class Interpreter:
    """One process with the C3's heap; ``setup`` is run once (imports, helpers)."""

    def __init__(self, setup: str, *, heap: str = "160K", path=(micropython.APP,)):
        script = LOOP % ([str(p) for p in path], setup)
        self._process = subprocess.Popen(
            [str(micropython.COMMAND), "-X", f"heapsize={heap}", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(10)

    def ask(self, expression: str, *values):
        """Return the value of ``expression`` with each ``{}`` filled by a value's repr."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(expression.format(*map(repr, values)) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline().rstrip("\n")
        mark, _, rest = line.partition(" ")
        if mark == "=":
            return ast.literal_eval(rest)
        if mark == "!":
            raise Raised(*rest.partition(" ")[::2])
        raise AssertionError(f"the interpreter ended: {line!r}")
