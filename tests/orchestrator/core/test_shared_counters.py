"""What several processes have counted together."""

import subprocess
import sys

_FULL = """
import os, resource
from beacon_ota.orchestrator.core.shared_counters import SharedCounters
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # not a byte more into any file
made = SharedCounters(3)
child = os.fork()
if child == 0:
    made.write(1, {"polls": 7})
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
made.write(0, {"polls": 5})
assert made.read_others(2) == [{"polls": 5}, {"polls": 7}], made.others(2)
assert made.read(2) == {}
"""


def test_counting_takes_no_room_on_the_disk():
    done = subprocess.run([sys.executable, "-c", _FULL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
