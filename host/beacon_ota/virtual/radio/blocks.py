"""The memory of NimBLE's host: one pool of blocks for the requests and notifications of all links.

The sizes are those that esp-nimble showed under MicroPython's unix port, with the pools that
ESP-IDF gives a C3. The second, larger pool is never asked: NimBLE allocates without a size.
"""

from collections import deque
from typing import Any

from beacon_ota.virtual.radio.controller import CREDITS, PACKET_LENGTH

BLOCKS = 12
FIRST_BLOCK, NEXT_BLOCK = 195, 224  # bytes of a value in the first block of a chain, and in others
L2CAP_HEADER = 4


def count_blocks(size: int) -> int:
    """Return the number of blocks that a value of ``size`` bytes takes."""
    return 1 + max(0, -(-(size - FIRST_BLOCK) // NEXT_BLOCK))


class BlockPool:
    """The free blocks of one host.

    Attributes:
        free: number of them.
    """

    def __init__(self) -> None:
        self.free = BLOCKS

    def take(self, number: int, leave: int = 0) -> bool:
        """Take blocks, if so many are free and ``leave`` more; return whether they were."""
        if self.free < number + leave:
            return False
        self.free -= number
        return True

    def give_back(self, number: int) -> None:
        """Return blocks to the pool."""
        self.free += number


class Outbox:
    """Notifications and indications that wait for the controller, which takes 12 packets.

    Args:
        pool: has their blocks until the controller has taken the last packet of each.
    """

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._waiting: deque[tuple[int, int]] = deque()  # number of the last packet, blocks

    def take_blocks(self, queue: Any, value: bytes, sent: int) -> bool:
        """Take the blocks of a PDU that is about to be sent; return False without enough of them.

        One block for the head, those of the value, and one that has to stay free: inside a handler
        it holds the response to the write.

        Args:
            queue: bumble's queue of packets for the controller.
            value: as beacon code passed it.
            sent: bytes of the PDU, at most the MTU.
        """
        self.release_sent(queue)
        if not self._pool.take(1 + count_blocks(len(value)), leave=1):
            return False
        self._pool.give_back(1 + count_blocks(len(value)))
        packets = -(-(sent + L2CAP_HEADER) // PACKET_LENGTH)
        if queue.pending + packets > CREDITS:
            held = 1 + count_blocks(sent - 3)
            self._pool.take(held)
            self._waiting.append((queue.queued + packets, held))
        return True

    def release_sent(self, queue: Any) -> None:
        """Give back the blocks of what the controller has taken."""
        taken = queue.queued - max(0, queue.pending - CREDITS)
        while self._waiting and self._waiting[0][0] <= taken:
            self._pool.give_back(self._waiting.popleft()[1])
