from collections.abc import Iterator

import pytest

from beacon_ota.virtual.radio.space import RadioSpace
from tests.virtual.radio.timers import ManualTimers


@pytest.fixture
def timers() -> ManualTimers:
    """The clock of the room."""
    return ManualTimers()


@pytest.fixture
def room(timers: ManualTimers) -> Iterator[RadioSpace]:
    with RadioSpace(seed=1, timers=timers) as room:
        yield room
