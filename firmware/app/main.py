# The beacon: creates the services, wires them together and runs their tasks; no other module knows
# all of them. The order matters: the watchdog first, then Bluetooth, then WiFi, before the heap has
# grown into the memory that their drivers need. The other modules are imported after them.

import asyncio
import gc
import time

import machine
from micropython import const
from modules import use
from wire import adverts

_SETTLED = const(3000)  # ms that the services have to run before they count as running


class Beacon:
    def __init__(self):
        from journal import Journal
        from net import clock
        from services.radio import Radio
        from store import Store
        from supervise import Supervisor

        self.reset_cause = machine.reset_cause()
        clock.begin()
        self.store = Store()
        self.journal = Journal(self.store)
        self.supervisor = Supervisor(self.journal)
        self._begun = time.ticks_ms()
        self.access = self.blufi = self.button = None

        use("ota.returned", "record_return", self.store, self.journal, self.reset_cause)
        self.radio = Radio(self.store, self.journal)
        self.radio.start(self.reset_cause)

        from net.wifi import Wifi

        self.wifi = Wifi(self.store, self.journal)
        self.version, self.device_type, self.insecure = use("about", "read")

        from ota.slots import Slots

        self.slots = Slots()
        self.access, self.blufi, self.button = use("wiring", "start", self)
        self.advertise_status()
        self.radio.start_advertising(use("services.positioning", "frame", self.store))

        from net.api import Api
        from ota.agent import Agent

        self.api = Api(self.store, self.wifi)
        self.agent = Agent(self)
        self.image_sha256 = ""  # SHA-256 of the running release, once it is known
        self._heap_min = 1 << 30

    # Advertises the running version and the state of provisioning; called again after each change.
    def advertise_status(self):
        flags = 0
        if self.blufi:
            flags = adverts.PROVISIONED if self.blufi.provisioned else 0
            if self.blufi.is_locked():
                flags |= adverts.LOCKED
        if self.button and self.button.pressed:
            flags |= adverts.PRESSED
        if self.slots.is_on_trial():
            flags |= adverts.TRIAL
        if self.insecure:
            flags |= adverts.INSECURE
        self.radio.set_status(flags, self.version)

    # Settings were provisioned: the orchestrator is polled at once.
    def on_provisioned(self):
        self.advertise_status()
        self.api.reload()
        self.agent.poll_now()

    # Whether the services run, for the health check of a release on trial. Radio.is_healthy() says
    # whether Bluetooth has to work at all.
    def is_healthy(self):
        settled = time.ticks_diff(time.ticks_ms(), self._begun) > _SETTLED
        served = self.access is None or self.access.is_up()
        return settled and served and not self.supervisor.deaths

    # The least free memory after a garbage collection, in bytes; every call measures again.
    def measure_heap(self):
        gc.collect()
        self._heap_min = min(self._heap_min, gc.mem_free())
        return self._heap_min

    # A confirmed release that has run for `healthy_s` has not crashed: the count starts again.
    async def record_good_boot(self):
        await asyncio.sleep(self.store.policy("healthy_s"))
        if not self.slots.is_on_trial():
            self.clear_crash_count()
        self.radio.record_good_boot()

    # Stage 0 counts in NVS, or in RTC memory when it cannot write to NVS.
    def clear_crash_count(self):
        if self.store.number("crashes"):
            self.store.try_put("crashes", None)
        memory = machine.RTC().memory
        kept = memory()
        if kept[:7] == b"crashes":
            memory(bytes(8) + kept[8:])

    async def run(self):
        start = self.supervisor.start
        start("radio", self.radio.run)
        start("wifi", self.wifi.run)
        start("agent", self.agent.run)
        if self.blufi:
            start("blufi", self.blufi.run)
        if self.button:
            start("button", self.button.run)
        asyncio.create_task(self.record_good_boot())
        await self.supervisor.run()


def run():
    asyncio.run(Beacon().run())
