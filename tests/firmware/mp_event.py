import asyncio
import time

from event import AutoResetEvent

_NEVER = 10_000_000  # ms: a test that waits for it fails by its own deadline
_DEADLINE = 30_000


def within_deadline(work):
    asyncio.run(asyncio.wait_for_ms(work, _DEADLINE))


def test_a_set_before_the_pause_ends_it():
    async def body():
        event = AutoResetEvent()
        event.set()
        await event.wait_ms(_NEVER)

    within_deadline(body())


def test_a_set_during_the_pause_ends_it():
    async def later(event):
        await asyncio.sleep_ms(1)
        event.set()

    async def body():
        event = AutoResetEvent()
        asyncio.create_task(later(event))
        await event.wait_ms(_NEVER)

    within_deadline(body())


def test_a_set_counts_once():
    async def body():
        event = AutoResetEvent()
        event.set()
        event.set()
        await event.wait_ms(_NEVER)
        begun = time.ticks_ms()
        await event.wait_ms(50)
        assert time.ticks_diff(time.ticks_ms(), begun) >= 50

    within_deadline(body())


# Whoever changes a value and sets the event has the value seen, at whatever moment that is.
def test_no_change_is_missed():
    values = [0]

    async def change(event):
        for number in range(1, 200):
            values[0] = number
            event.set()
            await asyncio.sleep_ms(number % 3)

    async def body():
        event = AutoResetEvent()
        asyncio.create_task(change(event))
        while values[0] != 199:
            await event.wait_ms(1 if values[0] % 2 else _NEVER)

    within_deadline(body())
