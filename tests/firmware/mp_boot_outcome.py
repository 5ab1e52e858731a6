# A release on trial asks again at once when somebody gives it other credentials.

import asyncio

from mp import chip as c

c.modules(c.Chip(c.layout(slot=1)))

from net.http import HttpError  # noqa: E402
from ota import boot_outcome, schedule  # noqa: E402

_DEADLINE = 30_000  # ms: what is waited for takes one second
_NEVER = 10_000_000


class Store:
    def policy(self, name):
        return {"trial_s": 10_000, "backoff_ms": 2000, "offline_ok": 1}[name]

    def text(self, name):
        return ""

    def number(self, name):
        return 0

    def put(self, name, value):
        pass

    def try_put(self, name, value):
        return True


class Beacon:
    version = "1.0.0"

    def __init__(self):
        self.store = Store()
        self.poll_requests = 0
        self.confirmed = False
        self.agent = self.wifi = self.radio = self.slots = self

    def is_up(self):
        return True

    def is_healthy(self):
        return True

    def advertise_status(self):
        pass

    def clear_crash_count(self):
        pass

    def confirm(self):
        self.confirmed = True
        return True


def test_other_credentials_end_the_pause_between_two_tries():
    schedule.retry_pause = lambda n, first_ms: _NEVER
    beacon = Beacon()
    tries = []

    async def ask(state):
        assert state == "trial"
        tries.append(beacon.poll_requests)
        if beacon.poll_requests == 0:
            raise HttpError("http", "status 401", True)
        return 204, None, None

    async def body():
        trial = asyncio.create_task(boot_outcome._run_trial(beacon, None, ask))
        while not tries:
            await asyncio.sleep_ms(1)
        beacon.poll_requests += 1
        await trial

    asyncio.run(asyncio.wait_for_ms(body(), _DEADLINE))
    assert tries == [0, 1] and beacon.confirmed
