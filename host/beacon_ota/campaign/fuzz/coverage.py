"""What guides the fuzzers: which lines of the watched files follow upon which."""

import sys
from collections.abc import Callable, Collection
from types import FrameType
from typing import Any

CoverageEdge = tuple[str, int, int]  # file, line before, line


def trace_edges(
    run: Callable[[], object], watched: Collection[str | None]
) -> tuple[set[CoverageEdge], Exception | None]:
    """Run something.

    Args:
        watched: names of the files to look at.

    Returns:
        What it reached, and the exception that ended it, if one did.
    """
    reached: set[CoverageEdge] = set()
    last = 0

    def line(frame: FrameType, event: str, _: Any) -> Callable | None:
        nonlocal last
        if event == "line":
            reached.add((frame.f_code.co_filename, last, frame.f_lineno))
            last = frame.f_lineno
        return line

    def call(frame: FrameType, event: str, _: Any) -> Callable | None:
        return line if frame.f_code.co_filename in watched else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        run()
    except Exception as error:  # any that has no name is what is looked for
        return reached, error
    finally:
        sys.settrace(before)
    return reached, None
