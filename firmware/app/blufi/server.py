# The resident part of provisioning: its GATT service, the window in which it is open, and its
# clients, served one at a time in order of arrival. A waiting client shortens the time of one that
# has not proved the PIN (services/radio.py), but not of one that has. The session's modules are
# loaded for a client and unloaded when it has gone.

import sys
import time

from event import AutoResetEvent
from micropython import const
from modules import unload, use
from wire import adverts

_WRITE = const(0x0008)
_READ_NOTIFY = const(0x0012)
_BUFFER = const(512)  # the longest write there is; a frame has at most 261 bytes
_LOOK = const(1000)  # ms between checks of the window
_FRAMES = const(96)  # unread frames of the client being served, and their bytes
_BYTES = const(4096)
_OTHERS = const(3)  # divides both for a client in the queue
_GOODBYE = const(200)  # ms for the last notification to get out
_LONG = const(100_000_000)  # ms without a network at which counting stops
_KEY = const(32)
_ENROLLED = const(160)  # bytes of a PIN's record
_LOCK = const(10)  # wrong guesses until provisioning is locked

_NEVER = const(0)  # policy `blufi`
_ALWAYS = const(2)


# Why provisioning is open, "" while it is closed. `fresh`: the beacon was never provisioned;
# `button`: ms for which the button keeps it open; `lost`: ms without any network, of `limit`
# seconds allowed.
def open_reason(policy, fresh, button, lost, limit):
    if policy == _NEVER:
        return ""
    if button > 0:
        return "button"
    if fresh:
        return "new"
    return "lost" if policy == _ALWAYS and lost >= 1000 * limit else ""


class Server:
    def __init__(self, beacon):
        import bluetooth

        store = beacon.store
        self.beacon = beacon
        self._rx = self.tx_handle = 0
        self._link = None  # of the client being served
        self.client_gone = True  # there is no such client, or it has left
        self._frames = []
        self.queue = []  # (link, frames) of waiting clients
        self.client_proved = False  # the client being served knows the secret
        self._wake = AutoResetEvent()
        self._reason = ""
        self._button = 0  # ms
        self._lost = 0  # ms
        self._checked_at = self.last_failure = time.ticks_ms()
        # Wrong guesses at the PIN; the handshake counts them.
        self.failures = store.number("pin_fail")
        self._suites = 1 if len(store.blob("pop")) else 0
        self._suites |= 2 if len(store.blob("pin_w", _ENROLLED)) else 0
        self.network = None  # an attempt to join one, which outlives the client
        self.check_provisioned()
        service = (
            (bluetooth.UUID(0xFF01), _WRITE),
            (bluetooth.UUID(0xFF02), _READ_NOTIFY),
        )
        beacon.radio.add_service((bluetooth.UUID(0xFFFF), service), self)

    # -- the window

    # Called after the settings changed. A beacon is provisioned when it has a network and the key
    # that the orchestrator knows.
    def check_provisioned(self):
        store = self.beacon.store
        beacon_key = store.blob("beacon_key")
        self.provisioned = bool(store.blob("wifi_ssid")) and len(beacon_key) == _KEY

    def is_locked(self):
        return self.failures >= _LOCK

    # Opens the window for `open_s`: the button was pressed, or a client left before everything
    # worked. Closes it with `still` False.
    def open_window(self, still=True):
        self._button = 1000 * self.beacon.store.policy("open_s") if still else 0
        self.update_window()

    def update_window(self):
        beacon = self.beacon
        policy = beacon.store.policy
        passed = time.ticks_diff(time.ticks_ms(), self._checked_at)
        if passed >= _LOOK:
            self._checked_at = time.ticks_ms()
            self._button = max(0, self._button - passed)
            self._lost = min(self._lost + passed, _LONG)
        if beacon.wifi.state == "got_ip":
            self._lost = 0
        why = ""
        if self._suites or policy("legacy"):
            why = open_reason(
                policy("blufi"), not self.provisioned, self._button, self._lost, policy("lost_s")
            )
        if why != self._reason:
            self._reason = why
            print("provisioning:", why or "closed")
            name = beacon.radio.name
            beacon.radio.set_alternate_adv(
                adverts.build_provisionable(name, self._suites) if why else b""
            )

    # -- called by the radio

    def on_handles(self, ble, handles):
        self._rx, self.tx_handle = handles
        ble.gatts_set_buffer(self._rx, _BUFFER)

    def on_disconnect(self, link):
        if not self.client_gone and link == self._link:
            self.client_gone = True
            self._wake.set()
        self.queue = [one for one in self.queue if one[0] != link]
        self._mark_contested()

    def on_write(self, link, handle, data):
        if handle != self._rx:
            return
        part = 1
        frames = self._frames
        if self.client_gone or link != self._link:
            part = _OTHERS
            frames = self._queue_frames(link, data)
        if frames is None:
            return
        waiting = sum([len(frame) for frame in frames]) + len(data)
        if len(frames) * part >= _FRAMES or waiting * part > _BYTES:
            self.beacon.radio.disconnect(link)  # the client writes too fast
            return
        frames.append(data)
        self._wake.set()

    # The list for the frames of a client that is not served yet; None when it will not be.
    def _queue_frames(self, link, data):
        for one, frames in self.queue:
            if one == link:
                return frames
        frames = use("blufi.queue", "add", self, link, data, bool(self._reason))
        self._mark_contested()
        return frames

    # Tells the radio whether a client waits for the place of the one being served.
    def _mark_contested(self):
        self.beacon.radio.contested = None if self.client_gone or not self.queue else self._link

    # -- the session

    # The next frame, None when none came for `ms` or the client has gone.
    async def next_frame(self, ms):
        if not self._frames and not self.client_gone:
            await self._wake.wait_ms(ms)
        return self._frames.pop(0) if self._frames and not self.client_gone else None

    async def run(self):
        while True:
            self.update_window()
            if not self.queue:
                await self._wake.wait_ms(_LOOK)
                continue
            link, frames = self.queue.pop(0)
            if not self._reason:  # closed meanwhile
                self.beacon.radio.disconnect(link)
                continue
            self._link, self._frames = link, frames
            self.client_gone = self.client_proved = False
            await self._serve(link)

    # Serves one client, and cleans up for the next one however the session ends. No exception may
    # end this task: a task that dies three times resets the chip, and no client may cause that.
    async def _serve(self, link):
        loaded = "blufi.session"
        self._mark_contested()
        try:
            from blufi import session

            loaded = session.MODULES
            await session.Session(self, link).run()
        except Exception as error:
            from describe import describe

            sys.print_exception(error)
            self.beacon.journal.write("blufi", "crash", describe(error))
        session = None
        end = time.ticks_add(time.ticks_ms(), _GOODBYE)
        while not self.client_gone and time.ticks_diff(end, time.ticks_ms()) > 0:
            await self._wake.wait_ms(_GOODBYE // 4)
        if not self.client_gone:
            self.beacon.radio.disconnect(link)
        self._frames = []
        self._link = None
        self.client_gone = True
        unload(loaded)
