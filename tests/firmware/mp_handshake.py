# How long a beacon waits after guesses that were wrong, and when it is open at all.

from blufi.handshake import delay_s
from blufi.server import open_reason


def test_each_failure_doubles_the_wait():
    assert [delay_s(n) for n in range(11)] == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 256]


def test_windows():
    # policy, fresh, ms of the button, ms without a network, limit in s
    assert open_reason(0, True, 1000, 10**6, 1) == ""
    assert open_reason(1, True, 0, 0, 600) == "new"
    assert open_reason(1, True, 5, 0, 600) == "button"
    assert open_reason(1, False, 0, 10**6, 600) == ""
    assert open_reason(2, False, 0, 599_999, 600) == ""
    assert open_reason(2, False, 0, 600_000, 600) == "lost"
    assert open_reason(2, False, 0, 0, 600) == ""
