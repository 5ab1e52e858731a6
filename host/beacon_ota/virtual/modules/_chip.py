# The line between beacon code and the supervisor that plays the chip: calls with an answer,
# and events that arrive at any moment. Everything else here is built on these two.

import gc
import struct
import sys

import micropython
import uselect
from micropython import const

_DEPTH = const(8)  # of the esp32 port's scheduler queue
_MANY = const(16)

_OK = const(0)
_ERRORS = (None, OSError, ValueError, RuntimeError, TypeError)

handlers = {}  # kind of event -> function of its fields; what it returns goes back
queue = []  # what beacon code scheduled
busy = False  # a call is on the line: nothing else may use it
held = 0  # machine.disable_irq()
gone = False  # the supervisor is no more
watching = False  # report how much heap is in use

_again = False
_running = False
_used = 0
_due = bytearray(1)  # the bell has rung since the last look
_head = bytearray(5)
_spare = bytearray(_MANY)
_rpc = _wake = _nudge = _poll = None
wake = -1
_schedule = micropython.schedule


# Opens the line on descriptors that the supervisor passed on.
def attach(rpc, bell, wake_in, wake_out):
    global _rpc, _wake, _nudge, _poll, wake
    import _thread
    import uctypes

    wake = wake_in
    _rpc = open(rpc, "r+b")
    _wake = open(wake, "rb")
    _nudge = open(wake_out, "wb")
    _poll = uselect.poll()
    _poll.register(wake, 1)
    nowhere = uctypes.bytearray_at(0, 1)
    bell = open(bell, "rb")
    _thread.start_new_thread(_pump, (bell, bytearray(1), _due, _schedule, run, nowhere))


# A thread, because an interrupt comes while beacon code computes. It shares the heap without
# a lock, so it only reads and schedules, and allocates nothing. One byte at a time: readinto()
# waits until its buffer is full. When the bell is gone, so is the supervisor, and the process
# must end whatever beacon code is at: reading address 0 does that.
def _pump(bell, buf, due, schedule, run, nowhere):
    while bell.readinto(buf):
        if not due[0]:
            due[0] = 1
            try:
                schedule(run, None)
            except RuntimeError:
                pass  # the queue is full, so a run is due anyway
    nowhere[0]


# Encodes what travels: None, bools, integers, strings, buffers and tuples of them.
def pack(x):
    if x is None:
        return b"N"
    if x is True:
        return b"T"
    if x is False:
        return b"F"
    if isinstance(x, int):
        return b"I" + struct.pack("<q", x)
    if isinstance(x, (tuple, list)):
        return b"(" + bytes((len(x),)) + b"".join([pack(y) for y in x])
    if isinstance(x, str):
        x = x.encode()
        return b"S" + struct.pack("<I", len(x)) + x
    x = memoryview(x)
    return b"B" + struct.pack("<I", len(x)) + bytes(x)


def _unpack(b, i):
    kind = b[i]
    i += 1
    if kind == 73:  # I
        return struct.unpack_from("<q", b, i)[0], i + 8
    if kind == 83 or kind == 66:  # S, B
        n = struct.unpack_from("<I", b, i)[0]
        i += 4
        x = b[i : i + n]
        return (x.decode() if kind == 83 else x), i + n
    if kind == 40:  # (
        n = b[i]
        i += 1
        x = []
        for _ in range(n):
            y, i = _unpack(b, i)
            x.append(y)
        return tuple(x), i
    return (None if kind == 78 else kind == 84), i


# Asks the supervisor and returns its answer, or raises what the chip would raise.
def call(*args):
    return transfer(args, None)


# The same with a buffer that goes along uncopied. Scheduled code waits until the answer is
# here; what was too large for the heap is read away, so that the line stays in step.
def transfer(args, blob):
    global busy
    if watching and blob is not None:
        measure()
    while busy:
        pass  # another thread's call is on the line
    m = pack(args)
    n = len(blob) if blob is not None else 0
    m = struct.pack("<II", len(m), n) + m
    busy = True
    try:
        _rpc.write(m)
        if n:
            _rpc.write(blob)
        if _rpc.readinto(_head) != 5:
            _lost()
        kind, n = struct.unpack("<BI", _head)
        try:
            m = _rpc.read(n)
        except MemoryError:
            while n > 0:
                n -= _rpc.readinto(_spare, min(n, _MANY))
            raise
    except OSError:
        _lost()
    finally:
        busy = False
    x = _unpack(m, 0)[0]
    if _again and not _running:
        run()
    if kind != _OK:
        raise _ERRORS[kind](*x)
    return x


# The supervisor is gone: end, whatever beacon code does about it.
def _lost():
    global gone
    gone = True
    raise SystemExit


# Tells the supervisor how much of the heap is in use, garbage aside, when that has changed. Called
# where beacon code waits or writes: there its buffers are at hand.
def measure():
    global _used
    gc.collect()
    used = gc.mem_alloc()
    if used != _used:
        _used = used
        call("heap", used)


# Marks the line busy while something else must not be interrupted by a handler.
def hold():
    global busy
    busy = True


def release():
    global busy
    busy = False
    if _again and not _running:
        run()


# Waits for events, at most `ms` of real time (-1: for ever), and handles them.
def wait(ms):
    for _ in _poll.ipoll(ms):
        woken()
        return True
    return False


# After a poll that the wake pipe ended. Only here the pipe is read: what was handled between
# two bytecodes leaves its byte behind, so that a poll that is about to block does not.
def woken():
    if _wake.readinto(_spare) == 0:
        _lost()
    _due[0] = 1
    run()


# Handles what is due: scheduled functions, then events. Runs between any two bytecodes, never
# inside itself, never while a call is on the line.
def run(_=None):
    global _again, _running
    if busy or _running or held:
        _again = True
        return
    _running = True
    try:
        while True:
            _again = False
            if queue:
                _nudge.write(b"+")
            while queue:
                f, x = queue.pop(0)
                try:
                    f(x)
                except Exception as e:
                    sys.print_exception(e)
            if _due[0]:
                _due[0] = 0
                _events()
            if not _again:
                return
    finally:
        _running = False


def _events():
    result = None
    while True:
        event = call("event", result)
        if event is None:
            return
        f = handlers.get(event[0])
        result = None
        if f:
            try:
                result = f(*event[1:])
            except Exception as e:
                sys.print_exception(e)


# micropython.schedule, as deep as the esp32 port's.
def schedule(f, x):
    if len(queue) >= _DEPTH:
        raise RuntimeError("schedule queue full")
    queue.append((f, x))
    if len(queue) == 1:  # else a run is due anyway
        try:
            _schedule(run, None)
        except RuntimeError:
            pass  # likewise


# A module made of another one's names.
class Namespace:
    def __init__(self, name, source, hidden=()):
        self.__name__ = name
        for key in dir(source):
            if key[:2] != "__" and key not in hidden:
                setattr(self, key, getattr(source, key))
