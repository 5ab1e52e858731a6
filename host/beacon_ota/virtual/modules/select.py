# `select.poll` that wakes for events as well, waits in virtual time, and polls objects
# written in Python only when something can have changed: after an event.

import io

import _chip
import time
import uselect
from micropython import const

POLLIN = const(1)
POLLOUT = const(4)
POLLERR = const(8)
POLLHUP = const(16)

_IOCTL_POLL = const(3)


class poll:
    def __init__(self):
        self._poll = uselect.poll()
        self._poll.register(_chip.wake, POLLIN)
        self._soft = {}

    def register(self, obj, mask=POLLIN | POLLOUT):
        if isinstance(obj, io.IOBase):
            self._soft[id(obj)] = [obj, mask]
        else:
            self._poll.register(obj, mask)

    def unregister(self, obj):
        if id(obj) in self._soft:
            del self._soft[id(obj)]
        else:
            self._poll.unregister(obj)

    def modify(self, obj, mask):
        if id(obj) in self._soft:
            self._soft[id(obj)][1] = mask
        else:
            self._poll.modify(obj, mask)

    def poll(self, timeout=-1):
        return self.ipoll(timeout)

    def ipoll(self, timeout=-1, flags=0):
        end = None
        left = -1
        if timeout is not None and timeout >= 0:
            left = self._host(timeout)
            end = time._real() + left * 1000
        if _chip.watching and left:
            _chip.measure()
        while True:
            ready = self._ask()
            woken = False
            for obj, found in self._poll.ipoll(0 if ready else left):
                if obj == _chip.wake:
                    woken = True
                else:
                    ready.append((obj, found))
            if woken:
                _chip.woken()
                ready = ready or self._ask()
            elif not ready and end is not None:
                return ready
            if ready or left == 0:
                if flags & 1:
                    for obj, _ in ready:
                        self.modify(obj, 0)
                return ready
            if end is not None:
                left = max(0, (end - time._real() + 999) // 1000)

    # The host's milliseconds for a timeout.
    def _host(self, timeout):
        return time._shrink(timeout)

    # Polls the objects that are not file descriptors.
    def _ask(self):
        ready = []
        for obj, mask in self._soft.values():
            found = obj.ioctl(_IOCTL_POLL, mask)
            if found:
                ready.append((obj, found))
        return ready


# For asyncio, which counts in the host's milliseconds already.
class HostPoll(poll):
    def _host(self, timeout):
        return timeout


def select(rlist, wlist, xlist, timeout=-1):
    p = poll()
    for objs, mask in ((rlist, POLLIN), (wlist, POLLOUT), (xlist, POLLERR | POLLHUP)):
        for obj in objs:
            p.register(obj, mask)
    found = [o for o, _ in p.ipoll(-1 if timeout is None or timeout < 0 else int(timeout * 1000))]
    return tuple([o for o in objs if o in found] for objs in (rlist, wlist, xlist))
