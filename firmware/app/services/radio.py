# The one owner of Bluetooth: what is advertised, which services there are, who hears of an event.
# The positioning frame is advertised at all times, except for seconds in a download that keeps
# stalling (see pause()). When there is something else to advertise, the two take turns. The scan
# response is the same behind both and says what runs here and how far an update is. Whoever wants
# GATT brings its service before open().

import asyncio
import errno
import sys
import time

from micropython import const
from modules import unload
from wire import adverts

_CONNECT = const(1)
_DISCONNECT = const(2)
_WRITE = const(3)
_MTU = const(21)
_SMALLEST = const(23)  # bytes of a packet until both sides agree on more

_NORMAL = const(100_000)  # us between advertisements
_SLOW = const(400_000)  # while an update has the radio's other half
_TURN = const(500)  # ms between looks, and for each of two frames that take turns
_QUEUE = const(32)  # writes of one link that nobody has looked at yet, and their bytes
_BYTES = const(2048)
_MOST = const(4)  # links that there can be
_IDLE = const(30_000)  # ms without a write until a link is cut
_STAY = const(60_000)  # ms in which it has to prove something, whatever it writes
_SHARE = const(15_000)  # of these, that are its own even when somebody else waits
_STILL = const(3000)  # ms off the air at a time: a reboot takes as long
_FAILED = const(0xFE)
_SHOWN = const(5000)  # ms for which a failure is advertised

# NVS `ble`: has activation ever come back on this board?
_TRYING = const(1)
_WORKS = const(2)
_AGAIN = const(3)  # nor after the power was cut


class Radio:
    def __init__(self, store, journal):
        self._store = store
        self._journal = journal
        self._ble = None
        self._allowed = store.policy("bluetooth") == 1
        self._needed = self._allowed and store.number("ble") == _WORKS
        self._services = []  # (service as gatts_register_services takes it, its owner)
        self._owners = {}  # value handle -> owner
        self.name = b""  # under which it is provisioned
        self._ibeacon = b""
        self._alternate_adv = b""
        self._show_alternate = False
        self._status = b""
        self._progress = b""
        self._slow = False
        self._paused_at = None  # ticks since when
        self._paused_ms = 0
        self._failure_ends = None  # ticks at which the failure notice ends
        self._stale = True
        # The handler's, who runs at any moment: who is connected (link -> number of the connection,
        # MTU), what was written, who writes too much.
        self._connections = {}
        self._serial = 0
        self._events = []
        self._overflow = None
        self._flag = asyncio.ThreadSafeFlag()
        # What the owners know: link -> [number of the connection, ms of silence that are allowed,
        # ticks at which they are over, at which it has to go, and at which it goes for another's
        # sake].
        self._limits = {}
        self.contested = None  # the link whose place somebody waits for

    # First thing of all, before WiFi and before the heap grows.
    def start(self, cause):
        if self._allowed:
            from services import activation

            found = activation.activate(self._store, self._journal, cause, self._irq)
            if found:
                self._ble, self.name = found
                self._needed = True
            activation = None
            unload("services.activation")

    # The next power-on may try again.
    def record_good_boot(self):
        if self._store.number("ble") == _AGAIN:
            self._store.try_put("ble", _TRYING)

    def is_on(self):
        return self._ble is not None

    # An owner has on_write(link, handle, data) and on_disconnect(link), and learns its value
    # handles by on_handles(ble, handles).
    def add_service(self, service, owner):
        self._services.append((service, owner))

    # Registers what was added, and goes on the air. The services are the same in every mode:
    # phones and computers remember them.
    def start_advertising(self, frame):
        self._ibeacon = frame
        if not self._ble:
            return
        if self._services:
            found = self._ble.gatts_register_services([service for service, _ in self._services])
            for handles, (_, owner) in zip(found, self._services):
                for handle in handles:
                    self._owners[handle] = owner
                owner.on_handles(self._ble, handles)
        self._advertise()

    # Does Bluetooth do what this board has shown that it can do?
    def is_healthy(self):
        return self._ble is not None if self._needed else True

    # -- what is advertised

    def _advertise(self):
        self._stale = False
        if not self._ble:
            return
        if self._paused_at is not None:
            self._ble.gap_advertise(None)
            return
        data = self._ibeacon or adverts.FLAGS
        if self._alternate_adv and (self._show_alternate or not self._ibeacon):
            data = self._alternate_adv
        try:
            self._ble.gap_advertise(
                _SLOW if self._slow else _NORMAL,
                adv_data=data,
                resp_data=self._progress + self._status,
                # With as many links as there can be, nobody else may connect, and asking for
                # that would end all of it.
                connectable=bool(self._services) and len(self._connections) < _MOST,
            )
        except OSError as error:
            print("ble:", error)

    # The positioning frame, b"" for none.
    def set_ibeacon(self, frame):
        self._ibeacon = frame
        self._stale = True

    # What else is to be found here for the time being, b"" for nothing.
    def set_alternate_adv(self, data):
        if data != self._alternate_adv:
            self._alternate_adv = data
            self._stale = True

    # What runs here, for the scan response.
    def set_status(self, data):
        if data != self._status:
            self._status = data
            self._stale = True

    # 0-100, 0xFE failed, 0xFF rebooting; None when there is no update (any more).
    def set_progress(self, value):
        self._failure_ends = None
        self._slow = value is not None
        self._progress = b"" if value is None else adverts.build_progress(value)
        self._advertise()

    # The update has failed, and the air says so for a moment.
    def show_failure(self):
        self.set_progress(_FAILED)
        self._failure_ends = time.ticks_add(time.ticks_ms(), _SHOWN)

    # Off the air for a moment, for a download that Bluetooth keeps starving. No longer: whoever
    # keeps a download from ending could keep positioning off as well.
    def pause(self):
        if self._paused_at is None:
            self._paused_at = time.ticks_ms()
            self._advertise()

    # Back on the air; returns for how many milliseconds it was off since this was last asked.
    def resume(self):
        self._unpause()
        quiet = self._paused_ms
        self._paused_ms = 0
        return quiet

    def _unpause(self):
        if self._paused_at is not None:
            self._paused_ms += time.ticks_diff(time.ticks_ms(), self._paused_at)
            self._paused_at = None
            self._advertise()

    # -- links

    # Bytes of a packet on this link.
    def mtu(self, link):
        return self._connections[link][1] if self._is_current(link) else _SMALLEST

    # The peer may be silent for so long before it is cut, and whatever it writes it has to go after
    # `stay` ms, after `share` if it is in another's way. For who has proved something, and for whom
    # it is the turn: no peer gets here by writing. Without `stay` that is as it was.
    def set_idle_timeout(self, link, ms=_IDLE, stay=_STAY, share=_SHARE):
        if link in self._limits:
            known = self._limits[link]
            known[1] = ms
            if stay:
                now = time.ticks_ms()
                known[3:] = (time.ticks_add(now, stay), time.ticks_add(now, share))
            self._mark_active(link)

    # It has proved something: its time begins again, unless it stays on somebody's other terms.
    def renew_timeouts(self, link):
        if link in self._limits and self._limits[link][1] == _IDLE:
            self.set_idle_timeout(link)

    def _mark_active(self, link):
        known = self._limits[link]
        known[2] = time.ticks_add(time.ticks_ms(), known[1])

    # Raises OSError: ENOTCONN when the peer has gone (and nobody else gets to read what was for
    # it), ENOMEM while too much waits to be sent.
    def notify(self, link, handle, data):
        if not self._is_current(link):
            raise OSError(errno.ENOTCONN)
        self._ble.gatts_notify(link, handle, data)

    def disconnect(self, link):
        if self._is_current(link):
            try:
                self._ble.gap_disconnect(link)
            except OSError as error:
                print("ble:", error)  # it was faster

    # Is this still the connection that the owners know? Handles are given out again.
    def _is_current(self, link):
        return (
            link in self._limits
            and link in self._connections
            and self._serial_of(link) == self._limits[link][0]
        )

    def _serial_of(self, link):
        return self._connections.get(link, (0, 0))[0]

    # -- events

    # Runs on the Bluetooth task, at any moment: copy, queue, return. An exception in here would
    # remove the handler for good, and a handler that takes its time holds up the peer. Connections
    # are not queued but kept as they are, so none is ever missed; writes are, within bounds, and
    # who has one dropped is cut, for its next ones would make no sense.
    def _irq(self, event, data):
        try:
            link = data[0]
            if event == _WRITE:
                value = self._ble.gatts_read(data[1])
                waiting = [len(one[3]) for one in self._events if one[0] == link]
                if len(waiting) >= _QUEUE or sum(waiting) + len(value) > _BYTES:
                    self._overflow = link
                elif link in self._connections:
                    self._events.append((link, self._serial_of(link), data[1], value))
            elif event == _CONNECT:
                # The controller stops advertising when somebody connects: also when that one has
                # gone again before anybody looks.
                self._serial += 1
                self._connections[link] = (self._serial, _SMALLEST)
                self._stale = True
            elif event == _DISCONNECT:
                self._connections.pop(link, None)
                self._stale = True
            elif event == _MTU and link in self._connections:
                self._connections[link] = (self._serial_of(link), data[1])
            else:
                return
            self._flag.set()
        except Exception as error:
            sys.print_exception(error)

    # One hop from the flag to the answer: each is a place where a sector may be written first, and
    # wait_for() takes three. So the looks are rung for, not waited for.
    async def run(self):
        clock = asyncio.create_task(self._tick())
        try:
            await self._serve()
        finally:
            clock.cancel()

    async def _tick(self):
        while True:
            await asyncio.sleep_ms(_TURN)
            self._flag.set()

    async def _serve(self):
        turned = time.ticks_ms()
        while True:
            await self._flag.wait()
            self._drain_events()
            now = time.ticks_ms()
            if time.ticks_diff(now, turned) >= _TURN:
                turned = now
                self._check_links(now)
            if self._stale:
                self._advertise()
            # A flag that is set already waits for nobody: whoever writes all the time would be all
            # that runs.
            await asyncio.sleep_ms(0)

    def _check_links(self, now):
        if self._paused_at is not None and time.ticks_diff(now, self._paused_at) > _STILL:
            self._unpause()
        if self._ibeacon and self._alternate_adv:
            self._show_alternate = not self._show_alternate
            self._stale = True
        if self._failure_ends is not None and time.ticks_diff(now, self._failure_ends) > 0:
            self.set_progress(None)
        full = len(self._limits) >= _MOST
        for link in list(self._limits):
            known = self._limits[link]
            for end in known[2 : 5 if full or link == self.contested else 4]:
                if time.ticks_diff(now, end) > 0:
                    self.disconnect(link)
                    break

    # What was written first, then who came and went: the last words of somebody who has gone
    # still count.
    def _drain_events(self):
        for _ in range(len(self._events)):  # what comes meanwhile has its turn after the others'
            link, serial, handle, value = self._events.pop(0)
            if link not in self._limits or self._limits[link][0] != serial:
                self._sync_connections()
            if link in self._limits and self._limits[link][0] == serial:
                self._mark_active(link)
                owner = self._owners.get(handle)
                if owner:
                    self._call_owner(owner.on_write, link, handle, value)
        self._sync_connections()
        if self._overflow is not None:
            self.disconnect(self._overflow)
            self._overflow = None

    def _sync_connections(self):
        live = dict(self._connections)
        for link in list(self._limits):
            if link not in live or live[link][0] != self._limits[link][0]:
                del self._limits[link]
                for _, owner in self._services:
                    self._call_owner(owner.on_disconnect, link)
        for link in live:
            if link not in self._limits:
                self._limits[link] = [live[link][0], 0, 0, 0, 0]
                self.set_idle_timeout(link)

    # Nothing that a peer can write may end this task: that would take Bluetooth along.
    def _call_owner(self, call, link, *args):
        try:
            call(link, *args)
        except Exception as error:
            from describe import describe_error

            self._journal.write("ble", "handler", describe_error(error))
            self.disconnect(link)
