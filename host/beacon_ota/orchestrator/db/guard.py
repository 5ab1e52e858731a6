"""Finds functions of the database's writer that read the fleet state; for the test suite.

A function for the writer runs later than the decision that it belongs to, when the fleet state may
have changed, so it must get its values as arguments. With ``BEACON_OTA_GUARD`` in the environment,
an object of the fleet state raises an error when the writer's thread reads it.
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
