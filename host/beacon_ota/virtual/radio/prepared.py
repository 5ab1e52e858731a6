"""Prepared writes: the parts of long values, as NimBLE keeps them until they are executed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bumble import att

from beacon_ota.virtual.radio.blocks import BlockPool, count_blocks

MAX_ENTRIES = 64  # of all links; CONFIG_BT_NIMBLE_ATT_MAX_PREP_ENTRIES
MAX_VALUE = 512
TIMEOUT_S = 30.0  # after the last part; then NimBLE disconnects


@dataclass
class _Part:
    handle: int
    offset: int
    data: bytes


class PreparedWrites:
    """The parts that the peers of one beacon have prepared, by link.

    Args:
        pool: the blocks of the host; parts hold theirs until they are executed.
        call_later: of the event loop.
        expire: called with the link whose peer has let 30 s pass.
    """

    def __init__(
        self,
        pool: BlockPool,
        call_later: Callable[..., Any],
        expire: Callable[[Any], None],
    ) -> None:
        self._pool = pool
        self._call_later = call_later
        self._expire = expire
        self._parts: dict[Any, list[_Part]] = {}
        self._timers: dict[Any, Any] = {}

    def add(self, link: Any, handle: int, offset: int, data: bytes) -> int:
        """Keep a part; return the ATT error, 0 without one."""
        if sum(map(len, self._parts.values())) >= MAX_ENTRIES:
            return att.ATT_PREPARE_QUEUE_FULL_ERROR
        if not self._pool.free:
            return att.ATT_INSUFFICIENT_RESOURCES_ERROR
        if not self._pool.take(count_blocks(len(data))):
            return att.ATT_PREPARE_QUEUE_FULL_ERROR
        self._parts.setdefault(link, []).append(_Part(handle, offset, data))
        self._stop_timer(link)
        self._timers[link] = self._call_later(TIMEOUT_S, self._expire, link)
        return 0

    def pop_values(self, link: Any) -> list[tuple[int, bytes]]:
        """Remove the parts of a link; return the values that they make, by ascending handle.

        Raises:
            ATT_Error: a part is missing, or a value is too long.
        """
        values: dict[int, bytes] = {}
        for part in sorted(self.drop(link), key=lambda part: (part.handle, part.offset)):
            value = values.setdefault(part.handle, b"")
            if part.offset != len(value):
                raise att.ATT_Error(att.ErrorCode.INVALID_OFFSET, part.handle)
            values[part.handle] = value + part.data
            if len(values[part.handle]) > MAX_VALUE:
                raise att.ATT_Error(att.ErrorCode.INVALID_ATTRIBUTE_LENGTH, part.handle)
        return list(values.items())

    def drop(self, link: Any) -> list[_Part]:
        """Remove the parts of a link and give their blocks back; return them."""
        self._stop_timer(link)
        parts = self._parts.pop(link, [])
        self._pool.give_back(sum(count_blocks(len(part.data)) for part in parts))
        return parts

    def stop_timers(self) -> None:
        """Wait for no part any more."""
        for link in tuple(self._timers):
            self._stop_timer(link)

    def _stop_timer(self, link: Any) -> None:
        timer = self._timers.pop(link, None)
        if timer is not None:
            timer.cancel()
