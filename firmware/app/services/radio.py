# The one owner of Bluetooth: chooses what is advertised, registers GATT services, and passes events
# to the services' owners. The positioning frame is advertised at all times, except while a download
# that keeps stalling has Bluetooth paused (see pause()). Another advertisement takes turns with it.
# The scan response, the same for both, tells the running version and the progress of an update.
# Services are added before start_advertising().

import asyncio
import errno
import sys
import time

from micropython import const
from modules import use
from wire import adverts

_CONNECT = const(1)
_DISCONNECT = const(2)
_WRITE = const(3)
_MTU = const(21)
_SMALLEST = const(23)  # bytes of a packet until both sides agree on more

_NORMAL = const(100_000)  # us between advertisements
_SLOW = const(400_000)  # while an update has the radio's other half
_APPLIED = const(5000)  # ms until an advertisement is applied again
_TURN = const(500)  # ms between checks, and for each of two frames that take turns
_QUEUE = const(32)  # unread writes of one link, and their bytes
_BYTES = const(2048)
_MOST = const(4)  # links at a time
_IDLE = const(30_000)  # ms without a write until a link is disconnected
_MUTE = const(10_000)  # the same for a link that has never written
_STAY = const(60_000)  # ms until a link that has proved nothing is disconnected
_SHARE = const(15_000)  # the same while another peer waits for its place
_STILL = const(3000)  # ms off the air at a time, as long as a reboot takes
_FAILED = const(0xFE)
_SHOWN = const(5000)  # ms for which a failure is advertised

# NVS `ble`: whether activation ever came back on this board.
_TRYING = const(1)
_WORKS = const(2)
_AGAIN = const(3)  # not after a power cut either


class Radio:
    def __init__(self, store, journal):
        self._store = store
        self._journal = journal
        self._ble = None
        self._allowed = store.policy("bluetooth") == 1
        self._needed = self._allowed and store.number("ble") == _WORKS
        self._services = []  # (service as gatts_register_services takes it, its owner)
        self._owners = {}  # value handle -> owner
        self.name = b""  # the name under which it is provisioned
        self._ibeacon = b""
        self._alternate_adv = b""
        self._show_alternate = False
        self._status = (0, "")  # flags, version
        self._progress = b""
        self._slow = False
        self._paused_at = None  # ticks since when
        self._paused_ms = 0
        self._failure_ends = None  # ticks at which the failure notice ends
        self._stale = True
        self._applied = 0  # ticks since when the advertisement is on the air
        # Used by the interrupt handler at any moment: link -> (number of the connection, MTU),
        # unread writes, and links that overflowed their queues, with their numbers.
        self._connections = {}
        self._serial = 0
        self._events = []
        self._overflows = []
        self._flag = asyncio.ThreadSafeFlag()
        # Connections that the owners know of: link -> [number of the connection, idle timeout in
        # ms, and three deadlines in ticks: of the silence, of the link, and of the link while
        # another peer waits for its place].
        self._limits = {}
        self.contested = None  # the link for whose place another peer waits

    # Turns Bluetooth on, before WiFi and before the heap grows.
    def start(self, cause):
        if self._allowed:
            args = self._store, self._journal, cause, self._irq
            found = use("services.activation", "start", *args)
            if found:
                self._ble, self.name = found
                self._needed = True

    # This boot was good: the next power-on may try to turn Bluetooth on again.
    def record_good_boot(self):
        if self._store.number("ble") == _AGAIN:
            self._store.try_put("ble", _TRYING)

    def is_up(self):
        return self._ble is not None

    # An owner has on_write(link, handle, data), on_disconnect(link) and on_handles(ble, handles),
    # which gives it its value handles.
    def add_service(self, service, owner):
        self._services.append((service, owner))

    # Registers the added services and starts advertising. The services are the same in every mode,
    # because phones and computers cache them.
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

    # Whether Bluetooth is on, or has never worked on this board.
    def is_healthy(self):
        return self._ble is not None if self._needed else True

    # -- what is advertised

    def _advertise(self):
        self._stale = False
        self._applied = time.ticks_ms()
        if not self._ble:
            return
        if self._paused_at is not None:
            self._ble.gap_advertise(None)
            return
        data = self._ibeacon or adverts.FLAGS
        # Computers remember what a beacon has stopped to send, and may see one of two frames only:
        # what is not in this packet is said in it.
        flags, version = self._status
        if self._progress:
            flags |= adverts.UPDATING
        if self._alternate_adv:
            flags |= adverts.OPEN
            if self._show_alternate or not self._ibeacon:
                data = self._alternate_adv
        # With all links taken, connectable advertising fails. NimBLE may count other links than
        # `_connections` has.
        for connectable in (bool(self._services) and len(self._connections) < _MOST, False):
            try:
                self._ble.gap_advertise(
                    _SLOW if self._slow else _NORMAL,
                    adv_data=data,
                    resp_data=self._progress + adverts.build_status(flags, version),
                    connectable=connectable,
                )
                break
            except OSError as error:
                print("ble:", error)

    # The positioning frame, b"" for none.
    def set_ibeacon(self, frame):
        self._ibeacon = frame
        self._stale = True

    # A second advertisement that takes turns with the positioning frame, b"" for none.
    def set_alternate_adv(self, data):
        if data != self._alternate_adv:
            self._alternate_adv = data
            self._stale = True

    # Status for the scan response, OPEN and UPDATING aside.
    def set_status(self, flags, version):
        if (flags, version) != self._status:
            self._status = flags, version
            self._stale = True

    # 0-100 percent, 0xFE failed, 0xFF rebooting; None without an update.
    def set_progress(self, value):
        self._failure_ends = None
        self._slow = value is not None
        self._progress = b"" if value is None else adverts.build_progress(value)
        self._advertise()

    # Advertises for a few seconds that the update has failed.
    def show_failure(self):
        self.set_progress(_FAILED)
        self._failure_ends = time.ticks_add(time.ticks_ms(), _SHOWN)

    # Stops advertising for a few seconds, for a download that Bluetooth keeps starving. The time is
    # short, because a server that keeps a download from ending must not stop positioning.
    def pause(self):
        if self._paused_at is None:
            self._paused_at = time.ticks_ms()
            self._advertise()

    # Advertises again; returns the milliseconds without advertising since the last call.
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

    # Bytes of a packet on this link (ATT MTU).
    def mtu(self, link):
        return self._connections[link][1] if self._is_current(link) else _SMALLEST

    # Sets how many ms the peer may be silent, and after how many ms it is disconnected whatever it
    # writes: `stay`, or `share` while another peer waits for its place. With `stay` 0 these two
    # remain unchanged. Called for peers that have proved something or whose turn it is, never
    # because of a mere write.
    def set_idle_timeout(self, link, ms=_IDLE, stay=_STAY, share=_SHARE):
        if link in self._limits:
            known = self._limits[link]
            known[1] = ms
            if stay:
                now = time.ticks_ms()
                known[3:] = (time.ticks_add(now, stay), time.ticks_add(now, share))
            self._mark_active(link)

    # The peer has proved something: its times begin again, unless another service has set them.
    def renew_timeouts(self, link):
        if link in self._limits and self._limits[link][1] == _IDLE:
            self.set_idle_timeout(link)

    def _mark_active(self, link):
        known = self._limits[link]
        known[2] = time.ticks_add(time.ticks_ms(), known[1])

    # Raises OSError: ENOTCONN when the peer has gone (its data must not go to the next peer on the
    # same handle), ENOMEM while too many notifications wait to be sent.
    def notify(self, link, handle, data):
        if not self._is_current(link):
            raise OSError(errno.ENOTCONN)
        self._ble.gatts_notify(link, handle, data)

    def disconnect(self, link):
        if self._is_current(link):
            try:
                if self._ble.gap_disconnect(link):
                    return
            except OSError as error:
                print("ble:", error)  # it is ending already
                return
            # NimBLE knows no such link: it tells nobody of the end of a connection that failed at
            # its beginning. A connection with the same handle may have come at this moment.
            ended = self._connections.pop(link, None)
            if ended and ended[0] != self._limits[link][0]:
                self._connections[link] = ended
            self._stale = True

    # Whether this is still the connection that the owners know of: handles are reused.
    def _is_current(self, link):
        return (
            link in self._limits
            and link in self._connections
            and self._serial_of(link) == self._limits[link][0]
        )

    def _serial_of(self, link):
        return self._connections.get(link, (0, 0))[0]

    # -- events

    # Runs on the Bluetooth task at any moment, so it only copies and queues. An exception would
    # remove the handler for good, and a slow handler holds up the peer. Connections are kept as
    # state, so none is missed. Writes are queued within bounds; a link that loses a write is
    # disconnected, because its next writes would make no sense.
    def _irq(self, event, data):
        try:
            link = data[0]
            if event == _WRITE:
                value = self._ble.gatts_read(data[1])
                waiting = [len(one[3]) for one in self._events if one[0] == link]
                serial = self._serial_of(link)
                if len(waiting) >= _QUEUE or sum(waiting) + len(value) > _BYTES:
                    if (link, serial) not in self._overflows:
                        self._overflows.append((link, serial))
                elif serial:
                    self._events.append((link, serial, data[1], value))
            elif event == _CONNECT:
                # The controller stops advertising when a peer connects, even if the peer has gone
                # again before the main loop notices.
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

    # A written sector may come between two steps of the event loop, so the way from the flag to the
    # answer is one step; wait_for() would take three. _tick() sets the flag for the periodic
    # checks.
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
            # Waiting for a flag that is set already lets no other task run: a peer that writes all
            # the time must not stop them.
            await asyncio.sleep_ms(0)

    def _check_links(self, now):
        if self._paused_at is not None and time.ticks_diff(now, self._paused_at) > _STILL:
            self._unpause()
        if self._ibeacon and self._alternate_adv:
            self._show_alternate = not self._show_alternate
            self._stale = True
        # After a connection that failed at its beginning NimBLE advertises without data, after a
        # reset of its own not at all, and tells nobody.
        if time.ticks_diff(now, self._applied) > _APPLIED:
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

    # Handles writes first, then connections: the last writes of a peer that has gone still count.
    def _drain_events(self):
        for _ in range(len(self._events)):  # later writes wait for the next call
            link, serial, handle, value = self._events.pop(0)
            if link not in self._limits or self._limits[link][0] != serial:
                self._sync_connections()
            if link in self._limits and self._limits[link][0] == serial:
                self._mark_active(link)
                owner = self._owners.get(handle)
                if owner:
                    self._call_owner(owner.on_write, link, handle, value)
        self._sync_connections()
        while self._overflows:
            link, serial = self._overflows.pop(0)
            if self._serial_of(link) == serial:
                self.disconnect(link)

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
                # What it has begun to write takes memory from everybody until it goes.
                self._limits[link][2] = time.ticks_add(time.ticks_ms(), _MUTE)

    # No write of a peer may end this task, which would stop Bluetooth.
    def _call_owner(self, call, link, *args):
        try:
            call(link, *args)
        except Exception as error:
            from describe import describe

            self._journal.write("ble", "handler", describe(error))
            self.disconnect(link)
