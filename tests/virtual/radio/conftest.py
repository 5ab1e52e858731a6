from collections.abc import Iterator

import pytest

from beacon_ota.virtual.radio.room import Room


@pytest.fixture
def room() -> Iterator[Room]:
    with Room(seed=1) as room:
        yield room
