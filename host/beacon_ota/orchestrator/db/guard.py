"""Objects of the view that the database's writer may not read; switched on by the test suite.

What a function handed to the writer reads of the view is of the moment when it runs, not of the
moment when it was decided upon. With ``BEACON_OTA_GUARD`` in the environment such a read raises.
"""

import os
import threading
from typing import Any

from beacon_ota.orchestrator.db.database import WRITER_THREAD

SWITCH = "BEACON_OTA_GUARD"


class ReadByWriter(AssertionError):
    """A defect: the writer's thread has read an object of the view."""


def keep_from_writer(*kinds: type) -> None:
    """Have every attribute of these classes' objects refuse to be read by a writer's thread."""
    if os.environ.get(SWITCH):
        for kind in kinds:
            _refuse_reads(kind)


def _refuse_reads(kind: Any) -> None:
    plain = kind.__getattribute__

    def read(self: Any, name: str) -> Any:
        if threading.current_thread().name == WRITER_THREAD:
            raise ReadByWriter(f"the database's writer reads {kind.__name__}.{name}")
        return plain(self, name)

    kind.__getattribute__ = read
