"""Run a file of plain ``test_*`` functions under the real MicroPython interpreter."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
APP = ROOT / "firmware" / "app"
HOST = ROOT / "host"
COMMAND = Path(sys.executable).with_name("micropython")

RUNNER = """
import sys
sys.path[:] = %r + sys.path
name = %r
only = %r
module = __import__(name)
failed = ran = 0
for test in sorted(dir(module)):
    if not test.startswith("test_") or (only and test != only):
        continue
    ran += 1
    try:
        getattr(module, test)()
        print("ok  ", test)
    except Exception as error:
        failed += 1
        print("FAIL", test)
        sys.print_exception(error)
print(ran, "ran,", failed, "failed")
sys.exit(1 if failed or not ran else 0)
"""


def run(
    file: Path, *, heap: str = "160K", path: tuple[Path, ...] = (APP,), only: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the tests of ``file`` with ``path`` importable, in a heap of the C3's size."""
    folders = [str(file.parent), *(str(p) for p in path)]
    script = RUNNER % (folders, file.stem, only)
    return subprocess.run(
        [str(COMMAND), "-X", f"heapsize={heap}", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
