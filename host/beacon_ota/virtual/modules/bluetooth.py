# `bluetooth` as the esp32 port has it: calls go to the supervisor's Bluetooth by name, events
# come back to the handler that irq() set. See docs/virtual-radio.md.

import errno
import os
import sys

import _chip
from micropython import const

FLAG_READ = const(0x0002)
FLAG_WRITE_NO_RESPONSE = const(0x0004)
FLAG_WRITE = const(0x0008)
FLAG_NOTIFY = const(0x0010)
FLAG_INDICATE = const(0x0020)

_IRQ_GATTS_READ_REQUEST = const(4)
_IRQ_GET_SECRET = const(29)
_IRQ_SET_SECRET = const(30)
_IRK = const(10)  # kind of secret: the key behind private addresses
_NO_CONNECTION = const(0xFFFF)
_DEFAULT_BUFFER = const(20)
_MOST = const(0xF000)  # bytes of one value that can travel
_ATT_MAX = const(527)
_TRUTHS = ("bond", "mitm", "le_secure")


# A UUID holds its bytes little endian, as they go over the air.
class UUID:
    def __init__(self, value):
        if isinstance(value, int):
            if value > 0xFFFF:
                raise ValueError("invalid UUID")
            raw = (value & 0xFFFF).to_bytes(2, "little")
        else:
            raw = _buffer(value)
            if len(raw) not in (2, 4, 16):
                raw = _digits(raw)
        self._raw = raw

    def __iter__(self):
        return iter(self._raw)

    def __eq__(self, other):
        return isinstance(other, UUID) and self._raw == other._raw

    def __lt__(self, other):
        return self._key() < other._key()

    def _key(self):
        return len(self._raw), self._raw

    def __hash__(self):
        return hash(self._raw)

    def __repr__(self):
        raw = self._raw
        text = "".join(["%02x" % raw[i] for i in range(len(raw) - 1, -1, -1)])
        if len(raw) < 16:
            return "UUID(0x%s)" % text
        return "UUID('%s')" % "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


# The 32 digits of a written UUID.
def _digits(text):
    text = text.decode().replace("-", "")
    for c in text:
        if c not in "0123456789abcdefABCDEF":
            raise ValueError("invalid char in UUID")
    if len(text) != 32:
        raise ValueError("UUID too long" if len(text) > 32 else "UUID too short")
    return bytes([int(text[i : i + 2], 16) for i in range(30, -1, -2)])


# The bytes of a buffer, string or UUID; TypeError for other objects.
def _buffer(x):
    if isinstance(x, UUID):
        return x._raw
    x = x.encode() if isinstance(x, str) else bytes(memoryview(x))
    if len(x) > _MOST:
        raise OSError(errno.ENOMEM)
    return x


def _maybe(x):
    return None if x is None else _buffer(x)


# An integer, as the port insists on one. A bool is one to it.
def _int(x):
    if isinstance(x, bool):
        return int(x)
    if not isinstance(x, int):
        raise TypeError("can't convert %s to int" % type(x).__name__)
    return x


def _uuid(x, what):
    if not isinstance(x, UUID):
        raise ValueError("invalid %s UUID" % what)
    return x._raw


def _characteristic(c):
    if not 2 <= len(c) <= 3:
        raise ValueError("invalid characteristic tuple")
    descriptors = c[2] if len(c) == 3 else ()
    descriptors = tuple([(_uuid(u, "descriptor"), _int(f)) for u, f in descriptors])
    return _uuid(c[0], "characteristic"), _int(c[1]), descriptors


# The one BLE object; its settings live in the supervisor, the handler lives here, and so do
# buffers of the size that the port keeps on this heap.
class BLE:
    _one = None

    def __new__(cls):
        if cls._one is None:
            cls._one = super().__new__(cls)
            cls._one._irq = None
            cls._one._values = {}
        return cls._one

    def active(self, *on):
        if not on:
            return _chip.call("ble", "active", None)
        self._values = {}
        result = _chip.call("ble", "active", bool(on[0]))
        if result and _event(_IRQ_GET_SECRET, (_IRK, 0, b"irk")) is None:
            _event(_IRQ_SET_SECRET, (_IRK, b"irk", os.urandom(16)))
        return result

    def config(self, *args, **kwargs):
        if not kwargs:
            if len(args) != 1:
                raise TypeError("must query one param")
            return _chip.call("ble", "config_get", args[0])
        if args:
            raise TypeError("can't specify pos and kw args")
        for name in kwargs:
            value = kwargs[name]
            if name == "gap_name":
                value = _buffer(value)
            else:
                value = bool(value) if name in _TRUTHS else _int(value)
            _chip.call("ble", "config_set", name, value)

    def irq(self, handler):
        if handler is not None and not callable(handler):
            raise ValueError("invalid handler")
        self._irq = handler

    def gap_advertise(self, interval_us=500000, adv_data=None, *, resp_data=None, connectable=True):
        if interval_us is not None:
            interval_us = _int(interval_us)
        adv_data, resp_data = _maybe(adv_data), _maybe(resp_data)
        _chip.call("ble", "gap_advertise", interval_us, adv_data, resp_data, bool(connectable))

    def gap_disconnect(self, conn_handle):
        return _chip.call("ble", "gap_disconnect", _int(conn_handle))

    def gap_scan(self, *args):
        if args and args[0] is None:
            args = (None,)
        else:
            args = [_int(x) for x in args[:3]] + [bool(x) for x in args[3:4]]
        _chip.call("ble", "gap_scan", *args)

    def gatts_register_services(self, services):
        self._values = {}
        try:
            plain = [
                (_uuid(u, "service"), tuple([_characteristic(c) for c in cs])) for u, cs in services
            ]
        except (TypeError, ValueError):
            # The port has begun to register by then.
            _chip.call("ble", "gatts_register_failed")
            raise
        handles = _chip.call("ble", "gatts_register_services", plain)
        for service in handles:
            for handle in service:
                self._values[handle] = bytearray(_DEFAULT_BUFFER)
        return handles

    def gatts_read(self, value_handle):
        return _chip.call("ble", "gatts_read", _int(value_handle))

    def gatts_write(self, value_handle, data, send_update=False):
        data = _buffer(data)
        _chip.call("ble", "gatts_write", _int(value_handle), data, bool(send_update))
        if len(data) > len(self._values.get(value_handle, data)):
            self._values[value_handle] = bytearray(len(data))
        return len(data)

    def gatts_notify(self, conn_handle, value_handle, data=None):
        self._send("gatts_notify", conn_handle, value_handle, data)

    def gatts_indicate(self, conn_handle, value_handle, data=None):
        self._send("gatts_indicate", conn_handle, value_handle, data)

    # Without data NimBLE reads the value, and asks the handler first, here and now.
    def _send(self, how, conn_handle, value_handle, data):
        if data is None:
            if value_handle in self._values:
                _event(_IRQ_GATTS_READ_REQUEST, (_NO_CONNECTION, value_handle))
        else:
            data = _buffer(data)[:_ATT_MAX]
        _chip.call("ble", how, _int(conn_handle), _int(value_handle), data)

    def gatts_set_buffer(self, value_handle, len, append=False):
        _chip.call("ble", "gatts_set_buffer", _int(value_handle), _int(len), bool(append))
        self._values[value_handle] = bytearray(len)


# The virtual radio has no GATT client, no pairing on the beacon's wish, and no L2CAP channels.
def _missing(*args):
    raise OSError(errno.EOPNOTSUPP)


for _name in (
    "gap_connect",
    "gap_pair",
    "gap_passkey",
    "gattc_discover_services",
    "gattc_discover_characteristics",
    "gattc_discover_descriptors",
    "gattc_read",
    "gattc_write",
    "gattc_exchange_mtu",
):
    setattr(BLE, _name, _missing)


# An event. Its buffers are NimBLE's: what they held is gone when the handler has returned. A
# handler that raises is removed.
def _event(event, data):
    ble = BLE._one
    if ble is None or ble._irq is None:
        return None
    lent = []
    shown = []
    for x in data:
        if isinstance(x, bytes):
            x = bytearray(x)
            lent.append(x)
            x = memoryview(x)
        shown.append(x)
    try:
        result = ble._irq(event, tuple(shown))
        return result if isinstance(result, (int, bytes)) else None
    except Exception as e:
        print("Unhandled exception in IRQ callback handler")
        sys.print_exception(e)
        ble._irq = None
    finally:
        for x in lent:
            x[:] = bytes(len(x))


_chip.handlers["ble"] = _event
