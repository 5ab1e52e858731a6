"""What the updates of the bench move, without a clock."""

from tests.bench.device import WANTED
from tests.bench.updates import measure_updates


def test_an_update_of_the_app_and_a_hotfix_move_what_is_wanted():
    for one in measure_updates(("app", "hotfix")):
        kilobytes, sectors, _seconds = WANTED[one.kind]
        assert 0 < one.fetched <= kilobytes * 1024, one
        assert 0 < one.erased <= sectors, one
        assert one.seconds > 0
