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
        self._frame = b""
        self._offer = b""
        self._turn = False
        self._about = b""
        self._progress = b""
        self._slow = False
        self._paused = None  # ticks since when
        self._quiet_ms = 0
        self._clear = None  # ticks at which the failure notice ends
        self._stale = True
        # The handler's, who runs at any moment: who is connected (link -> number of the connection,
        # MTU), what was written, who writes too much.
        self._live = {}
        self._serial = 0
        self._events = []
        self._flood = None
        self._flag = asyncio.ThreadSafeFlag()
        # What the owners know: link -> [number of the connection, ms of silence that are allowed,
        # ticks at which they are over, at which it has to go, and at which it goes for another's
        # sake].
        self._links = {}
        self.wanted = None  # the link whose place somebody waits for

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
    def healthy(self):
        if self._store.number("ble") == _AGAIN:
            self._store.try_put("ble", _TRYING)

    def on(self):
        return self._ble is not None

    # An owner has on_write(link, handle, data) and on_disconnect(link), and learns its value
    # handles by on_handles(ble, handles).
    def add(self, service, owner):
        self._services.append((service, owner))

    # Registers what was added, and goes on the air. The services are the same in every mode:
    # phones and computers remember them.
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
        data = self._frame or adverts.FLAGS
        if self._offer and (self._turn or not self._frame):
            data = self._offer
        try:
            self._ble.gap_advertise(
                _SLOW if self._slow else _NORMAL,
                adv_data=data,
                resp_data=self._progress + self._about,
                # With as many links as there can be, nobody else may connect, and asking for
                # that would end all of it.
                connectable=bool(self._services) and len(self._live) < _MOST,
            )
        except OSError as error:
            print("ble:", error)

    # The positioning frame, b"" for none.
    def position(self, frame):
        self._frame = frame
        self._stale = True

    # What else is to be found here for the time being, b"" for nothing.
    def offer(self, data):
        if data != self._offer:
            self._offer = data
            self._stale = True

    # What runs here, for the scan response.
    def about(self, data):
        if data != self._about:
            self._about = data
            self._stale = True

    # 0-100, 0xFE failed, 0xFF rebooting; None when there is no update (any more).
    def progress(self, value):
        self._clear = None
        self._slow = value is not None
        self._progress = b"" if value is None else adverts.build_progress(value)
        self._apply()

    # The update has failed, and the air says so for a moment.
    def failed(self):
        self.progress(_FAILED)
        self._clear = time.ticks_add(time.ticks_ms(), _SHOWN)

    # Off the air for a moment, for a download that Bluetooth keeps starving. No longer: whoever
    # keeps a download from ending could keep positioning off as well.
    def pause(self):
        if self._paused is None:
            self._paused = time.ticks_ms()
            self._apply()

    # Back on the air; returns for how many milliseconds it was off since this was last asked.
    def resume(self):
        self._speak()
        quiet = self._quiet_ms
        self._quiet_ms = 0
        return quiet

    def _speak(self):
        if self._paused is not None:
            self._quiet_ms += time.ticks_diff(time.ticks_ms(), self._paused)
            self._paused = None
            self._apply()

    # -- links

    # Bytes of a packet on this link.
    def mtu(self, link):
        return self._live[link][1] if self._same(link) else _SMALLEST

    # The peer may be silent for so long before it is cut, and whatever it writes it has to go after
    # `stay` ms, after `share` if it is in another's way. For who has proved something, and for whom
    # it is the turn: no peer gets here by writing. Without `stay` that is as it was.
    def keep(self, link, ms=_IDLE, stay=_STAY, share=_SHARE):
        if link in self._links:
            known = self._links[link]
            known[1] = ms
            if stay:
                now = time.ticks_ms()
                known[3:] = (time.ticks_add(now, stay), time.ticks_add(now, share))
            self._heard(link)

    # It has proved something: its time begins again, unless it stays on somebody's other terms.
    def renew(self, link):
        if link in self._links and self._links[link][1] == _IDLE:
            self.keep(link)

    def _heard(self, link):
        known = self._links[link]
        known[2] = time.ticks_add(time.ticks_ms(), known[1])

    # Raises OSError: ENOTCONN when the peer has gone (and nobody else gets to read what was for
    # it), ENOMEM while too much waits to be sent.
    def notify(self, link, handle, data):
        if not self._same(link):
            raise OSError(errno.ENOTCONN)
        self._ble.gatts_notify(link, handle, data)

    def cut(self, link):
        if self._same(link):
            try:
                self._ble.gap_disconnect(link)
            except OSError as error:
                print("ble:", error)  # it was faster

    # Is this still the connection that the owners know? Handles are given out again.
    def _same(self, link):
        return link in self._links and link in self._live and self._of(link) == self._links[link][0]

    def _of(self, link):
        return self._live.get(link, (0, 0))[0]

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
                    self._flood = link
                elif link in self._live:
                    self._events.append((link, self._of(link), data[1], value))
            elif event == _CONNECT:
                # The controller stops advertising when somebody connects: also when that one has
                # gone again before anybody looks.
                self._serial += 1
                self._live[link] = (self._serial, _SMALLEST)
                self._stale = True
            elif event == _DISCONNECT:
                self._live.pop(link, None)
                self._stale = True
            elif event == _MTU and link in self._live:
                self._live[link] = (self._of(link), data[1])
            else:
                return
            self._flag.set()
        except Exception as error:
            sys.print_exception(error)

    # One hop from the flag to the answer: each is a place where a sector may be written first, and
    # wait_for() takes three. So the looks are rung for, not waited for.
    async def run(self):
        clock = asyncio.create_task(self._ring())
        try:
            await self._serve()
        finally:
            clock.cancel()

    async def _ring(self):
        while True:
            await asyncio.sleep_ms(_TURN)
            self._flag.set()

    async def _serve(self):
        turned = time.ticks_ms()
        while True:
            await self._flag.wait()
            self._pump()
            now = time.ticks_ms()
            if time.ticks_diff(now, turned) >= _TURN:
                turned = now
                self._look(now)
            if self._stale:
                self._apply()
            # A flag that is set already waits for nobody: whoever writes all the time would be all
            # that runs.
            await asyncio.sleep_ms(0)

    def _look(self, now):
        if self._paused is not None and time.ticks_diff(now, self._paused) > _STILL:
            self._speak()
        if self._frame and self._offer:
            self._turn = not self._turn
            self._stale = True
        if self._clear is not None and time.ticks_diff(now, self._clear) > 0:
            self.progress(None)
        full = len(self._links) >= _MOST
        for link in list(self._links):
            known = self._links[link]
            for end in known[2 : 5 if full or link == self.wanted else 4]:
                if time.ticks_diff(now, end) > 0:
                    self.cut(link)
                    break

    # What was written first, then who came and went: the last words of somebody who has gone
    # still count.
    def _pump(self):
        for _ in range(len(self._events)):  # what comes meanwhile has its turn after the others'
            link, serial, handle, value = self._events.pop(0)
            if link not in self._links or self._links[link][0] != serial:
                self._settle()
            if link in self._links and self._links[link][0] == serial:
                self._heard(link)
                owner = self._owners.get(handle)
                if owner:
                    self._tell(owner.on_write, link, handle, value)
        self._settle()
        if self._flood is not None:
            self.cut(self._flood)
            self._flood = None

    def _settle(self):
        live = dict(self._live)
        for link in list(self._links):
            if link not in live or live[link][0] != self._links[link][0]:
                del self._links[link]
                for _, owner in self._services:
                    self._tell(owner.on_disconnect, link)
        for link in live:
            if link not in self._links:
                self._links[link] = [live[link][0], 0, 0, 0, 0]
                self.keep(link)

    # Nothing that a peer can write may end this task: that would take Bluetooth along.
    def _tell(self, call, link, *args):
        try:
            call(link, *args)
        except Exception as error:
            from describe import describe_error

            self._journal.write("ble", "handler", describe_error(error))
            self.cut(link)
