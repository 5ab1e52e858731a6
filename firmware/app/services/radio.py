# The one owner of Bluetooth: what is advertised, which services there are, who hears of an event.
# The advertising data is the positioning frame and never stops for an update; the scan response
# carries the update's progress. Whoever wants GATT brings its services before open().

import asyncio
import sys
import time

from micropython import const
from wire import adverts

_CONNECT = const(1)
_DISCONNECT = const(2)
_WRITE = const(3)
_MTU = const(21)

_NORMAL = const(100_000)  # us between advertisements
_SLOW = const(400_000)  # while an update has the radio's other half
_TICK = const(20)  # ms between looks at the events while somebody is connected
_IDLE = const(200)  # and while nobody is
_QUEUE = const(16)  # events that nobody has looked at yet
_FAILED = const(0xFE)
_SHOWN = const(5000)  # ms for which a failure is advertised

# NVS `ble`: has activation ever come back on this board?
_UNKNOWN = const(0)
_TRYING = const(1)
_WORKS = const(2)
_POWER_ON = const(1)


class Radio:
    def __init__(self, store, journal):
        self._store = store
        self._journal = journal
        self._ble = None
        self._needed = store.number("ble") == _WORKS
        self._services = []  # (service as gatts_register_services takes it, its owner)
        self._owners = {}  # value handle -> owner
        self._events = []
        self._frame = b""
        self._about = b""
        self._progress = b""
        self._slow = False
        self._paused = None  # ticks since when
        self._quiet_ms = 0
        self._clear = None  # ticks at which the failure notice ends
        self._stale = True
        self._links = 0

    # First thing of all, before WiFi and before the heap grows. On a board (or an emulated chip)
    # whose Bluetooth hangs or resets the chip, `ble` stays at "trying": that boot goes without,
    # until somebody has cut the power.
    def start(self, cause):
        known = self._store.number("ble")
        if known == _TRYING and cause != _POWER_ON:
            self._journal.write("ble", "skipped", "activation never came back")
            return
        if known != _WORKS:
            self._store.put("ble", _TRYING)
        try:
            import bluetooth

            ble = bluetooth.BLE()
            ble.active(True)
            ble.irq(self._irq)
        except (ImportError, OSError, RuntimeError) as error:
            if known == _WORKS or cause == _POWER_ON:
                self._journal.write("ble", "failed", repr(error))
            if known != _WORKS:
                self._store.put("ble", _UNKNOWN)
            return
        if known != _WORKS:
            self._store.put("ble", _WORKS)
        self._needed = True
        self._ble = ble

    def on(self):
        return self._ble is not None

    # An owner has on_write(link, handle, data), on_connect(link), on_disconnect(link) and
    # on_mtu(link, mtu), and learns its value handles by on_handles(handles).
    def add(self, service, owner):
        self._services.append((service, owner))

    # Registers what was added, and goes on the air.
    def open(self, frame):
        self._frame = frame
        if not self._ble:
            return
        if self._services:
            found = self._ble.gatts_register_services([service for service, _ in self._services])
            for handles, (_, owner) in zip(found, self._services):
                for handle in handles:
                    self._owners[handle] = owner
                owner.on_handles(self._ble, handles)
        self._apply()

    # Does Bluetooth do what this board has shown that it can do?
    def fit(self):
        return self._ble is not None if self._needed else True

    # -- what is advertised

    def _apply(self):
        self._stale = False
        if not self._ble:
            return
        if self._paused is not None:
            self._ble.gap_advertise(None)
            return
        self._ble.gap_advertise(
            _SLOW if self._slow else _NORMAL,
            adv_data=self._frame or adverts.FLAGS,
            resp_data=self._progress + self._about,
            connectable=bool(self._services),
        )

    # What runs here, for the scan response.
    def about(self, data):
        self._about = data
        self._stale = True

    # 0-100, 0xFE failed, 0xFF rebooting; None when there is no update (any more).
    def progress(self, value):
        self._clear = None
        self._slow = value is not None
        self._progress = b"" if value is None else adverts.progress(value)
        self._apply()

    # The update has failed, and the air says so for a moment.
    def failed(self):
        self.progress(_FAILED)
        self._clear = time.ticks_add(time.ticks_ms(), _SHOWN)

    # Off the air, for a download that Bluetooth keeps starving.
    def pause(self):
        if self._paused is None:
            self._paused = time.ticks_ms()
            self._apply()

    # Back on the air; returns for how many milliseconds it was off since this was last asked.
    def resume(self):
        if self._paused is not None:
            self._quiet_ms += time.ticks_diff(time.ticks_ms(), self._paused)
            self._paused = None
            self._apply()
        quiet = self._quiet_ms
        self._quiet_ms = 0
        return quiet

    # -- events

    # Runs on the Bluetooth task, at any moment: copy, queue, return. An exception in here would
    # remove the handler for good, and a handler that takes its time holds up the peer.
    def _irq(self, event, data):
        try:
            if len(self._events) >= _QUEUE:
                return
            if event == _WRITE:
                link, handle = data
                self._events.append((event, link, handle, self._ble.gatts_read(handle)))
            elif event in (_CONNECT, _DISCONNECT):
                self._events.append((event, data[0], 0, None))
            elif event == _MTU:
                self._events.append((event, data[0], data[1], None))
        except Exception as error:
            sys.print_exception(error)

    async def run(self):
        while True:
            while self._events:
                self._dispatch(self._events.pop(0))
            if self._clear is not None and time.ticks_diff(time.ticks_ms(), self._clear) > 0:
                self.progress(None)
            if self._stale:
                self._apply()
            await asyncio.sleep_ms(_TICK if self._links else _IDLE)

    def _dispatch(self, event):
        kind, link, handle, data = event
        if kind == _WRITE:
            owner = self._owners.get(handle)
            if owner:
                owner.on_write(link, handle, data)
            return
        if kind != _MTU:
            # The controller stops advertising when somebody connects.
            self._stale = True
            self._links = max(0, self._links + (1 if kind == _CONNECT else -1))
        for _, owner in self._services:
            if kind == _CONNECT:
                owner.on_connect(link)
            elif kind == _DISCONNECT:
                owner.on_disconnect(link)
            else:
                owner.on_mtu(link, handle)
