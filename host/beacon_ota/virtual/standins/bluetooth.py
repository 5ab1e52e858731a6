# `bluetooth`: every call goes to the supervisor's Bluetooth backend by its name, and every
# event comes back to the handler that irq() set. See docs/virtual-beacon.md, "Bluetooth".

import _chip
import sys
from micropython import const

FLAG_BROADCAST = const(0x0001)
FLAG_READ = const(0x0002)
FLAG_WRITE_NO_RESPONSE = const(0x0004)
FLAG_WRITE = const(0x0008)
FLAG_NOTIFY = const(0x0010)
FLAG_INDICATE = const(0x0020)
FLAG_AUTHENTICATED_SIGNED_WRITE = const(0x0040)
FLAG_AUX_WRITE = const(0x0100)
FLAG_READ_ENCRYPTED = const(0x0200)
FLAG_READ_AUTHENTICATED = const(0x0400)
FLAG_READ_AUTHORIZED = const(0x0800)
FLAG_WRITE_ENCRYPTED = const(0x1000)
FLAG_WRITE_AUTHENTICATED = const(0x2000)
FLAG_WRITE_AUTHORIZED = const(0x4000)


# A UUID holds its bytes little endian, as they go over the air.
class UUID:
    def __init__(self, value):
        if isinstance(value, int):
            if not 0 <= value <= 0xFFFF:
                raise ValueError("invalid UUID")
            self._raw = value.to_bytes(2, "little")
        elif isinstance(value, str):
            text = value.replace("-", "")
            if len(text) != 32:
                raise ValueError("invalid UUID")
            self._raw = bytes(int(text[i : i + 2], 16) for i in range(30, -1, -2))
        else:
            if len(value) not in (2, 4, 16):
                raise ValueError("invalid UUID")
            self._raw = bytes(value)

    def __iter__(self):
        return iter(self._raw)

    def __len__(self):
        return len(self._raw)

    def __eq__(self, other):
        return isinstance(other, UUID) and self._raw == other._raw

    def __lt__(self, other):
        return self._raw < other._raw

    def __hash__(self):
        return hash(self._raw)

    def __repr__(self):
        raw = self._raw
        if len(raw) == 2:
            return "UUID(0x%04x)" % int.from_bytes(raw, "little")
        text = "".join("%02x" % b for b in reversed(raw))
        return "UUID('%s')" % "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _plain(x):
    if isinstance(x, UUID):
        return x._raw
    if isinstance(x, (tuple, list)):
        return tuple([_plain(y) for y in x])
    return x


# The one BLE object; what it is told lives in the backend, the handler lives here.
class BLE:
    _one = None

    def __new__(cls):
        if cls._one is None:
            cls._one = super().__new__(cls)
            cls._one._irq = None
        return cls._one

    def active(self, on=None):
        return _chip.call("ble", "active", None if on is None else bool(on))

    def config(self, *args, **kwargs):
        if args and kwargs:
            raise TypeError("can't specify pos and kw args")
        if kwargs:
            for name in kwargs:
                _chip.call("ble", "config_set", name, _plain(kwargs[name]))
            return
        if len(args) != 1:
            raise TypeError("must query one param")
        return _chip.call("ble", "config_get", args[0])

    def irq(self, handler):
        self._irq = handler

    def gap_advertise(self, interval_us, adv_data=None, *, resp_data=None, connectable=True):
        _chip.call("ble", "gap_advertise", interval_us, adv_data, resp_data, bool(connectable))

    def gap_disconnect(self, conn_handle):
        return _chip.call("ble", "gap_disconnect", conn_handle)

    def gap_scan(self, *args):
        _chip.call("ble", "gap_scan", *args)

    def gatts_register_services(self, services):
        return _chip.call("ble", "gatts_register_services", _plain(services))

    def gatts_read(self, handle):
        return _chip.call("ble", "gatts_read", handle)

    def gatts_write(self, handle, data, send_update=False):
        _chip.call("ble", "gatts_write", handle, data, bool(send_update))

    def gatts_notify(self, conn_handle, handle, data=None):
        _chip.call("ble", "gatts_notify", conn_handle, handle, data)

    def gatts_indicate(self, conn_handle, handle, data=None):
        _chip.call("ble", "gatts_indicate", conn_handle, handle, data)

    def gatts_set_buffer(self, handle, size, append=False):
        _chip.call("ble", "gatts_set_buffer", handle, size, bool(append))

    def gattc_exchange_mtu(self, conn_handle):
        _chip.call("ble", "gattc_exchange_mtu", conn_handle)


# An event: addresses are valid only during the call, and a handler that raises is removed.
def _event(event, data):
    ble = BLE._one
    if ble is None or ble._irq is None:
        return None
    try:
        return ble._irq(event, tuple([memoryview(x) if isinstance(x, bytes) else x for x in data]))
    except Exception as e:
        ble._irq = None
        sys.print_exception(e)


_chip.handlers["ble"] = _event
