from collections.abc import Iterator

import pytest

from beacon_ota.virtual.radio.space import RadioSpace
from tests.virtual.radio.timers import ManualTimers


@pytest.fixture
def timers() -> ManualTimers:
    """The clock of the space."""
    return ManualTimers()


@pytest.fixture
def space(timers: ManualTimers) -> Iterator[RadioSpace]:
    with RadioSpace(seed=1, timers=timers) as space:
        yield space
