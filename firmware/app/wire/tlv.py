# The custom data of a provisioning session: one byte for the kind, then fields of tag, length and
# value. It is sent inside the protected session only.
#
#   CONFIG       client -> beacon   settings, by the names under which the beacon stores them
#   QUERY        client -> beacon   nothing; asks for a STATE
#   CREDENTIALS  client -> beacon   all that open the door from now on, as in wire/access.py
#   FORGET       client -> beacon   nothing; the beacon erases what was provisioned
#   STATE        beacon -> client   its id, its version, the result of its last poll
#
# Fields come in rising order of their tags, each at most once, so there is one way to write a
# message. A tag that this version does not know is refused below 80 and skipped from there on.

from . import const, url
from .access import ID, MAX_CREDENTIALS, SECRET
from .shapes import parse_window

CONFIG = const(0x01)
QUERY = const(0x02)
CREDENTIALS = const(0x03)
FORGET = const(0x04)
STATE = const(0x81)

MAX_SIZE = const(1024)

_SKIP = const(0x80)
_TEXT = const(0)
_BYTES = const(1)
_NUMBER = const(2)  # two bytes, big-endian, signed

# tag, name, kind, then the least and the greatest length, or value for a number.
_FIELDS = {
    CONFIG: (
        (0x01, "orch_url", _TEXT, 8, 128),
        (0x02, "beacon_key", _BYTES, 32, 32),
        (0x03, "fleet_key", _BYTES, 16, 16),
        (0x04, "site", _TEXT, 0, 64),
        (0x05, "window", _TEXT, 0, 11),
        (0x06, "utc_off", _NUMBER, -720, 840),
        (0x07, "channel", _TEXT, 1, 16),
        (0x08, "ibeacon", _BYTES, 20, 20),
        (0x09, "wifi2_ssid", _BYTES, 0, 32),
        (0x0A, "wifi2_pass", _BYTES, 0, 64),
    ),
    QUERY: (),
    FORGET: (),
    STATE: (
        (0x01, "beacon_id", _TEXT, 1, 64),
        (0x02, "version", _TEXT, 1, 64),
        (0x03, "image", _BYTES, 32, 32),
        (0x04, "ip", _TEXT, 1, 45),
        (0x05, "poll", _TEXT, 1, 32),
        (0x06, "device_type", _TEXT, 1, 32),
        (0x07, "refused", _TEXT, 1, 16),
    ),
}


# A message breaks the contract. `field` is the name of the field, "" for the whole message.
class TlvError(ValueError):
    def __init__(self, what, field=""):
        super().__init__("%s: %s" % (field, what) if field else what)
        self.what = what
        self.field = field


# Encodes a dictionary of fields; a field that is absent or None is left out.
def encode(kind, fields):
    if kind == CREDENTIALS:
        return bytes((kind,)) + _credentials(fields["creds"])
    out = bytearray((kind,))
    known = _FIELDS[kind]
    for name in fields:
        if not any(name == row[1] for row in known):
            raise TlvError("unknown", name)
    for row in known:
        value = fields.get(row[1])
        if value is None:
            continue
        if row[2] == _TEXT:
            value = value.encode()
        elif row[2] == _NUMBER:
            if not row[3] <= value <= row[4]:
                raise TlvError("range", row[1])
            value = (value & 0xFFFF).to_bytes(2, "big")
        _check(row, value)
        out += bytes((row[0], len(value)))
        out += value
    if len(out) > MAX_SIZE:
        raise TlvError("size")
    return bytes(out)


# Decodes a message into (kind, fields). Raises MalformedMessage. All fields are checked first.
def decode(data):
    if not 1 <= len(data) <= MAX_SIZE:
        raise TlvError("size")
    kind = data[0]
    if kind == CREDENTIALS:
        return kind, {"creds": _credentials(bytes(data[1:]))}
    if kind not in _FIELDS:
        raise TlvError("kind")
    known = _FIELDS[kind]
    fields = {}
    last = 0
    at = 1
    while at < len(data):
        tag = data[at]
        if tag <= last:
            raise TlvError("order")
        last = tag
        if at + 2 > len(data) or at + 2 + data[at + 1] > len(data):
            raise TlvError("cut off")
        value = bytes(data[at + 2 : at + 2 + data[at + 1]])
        at += 2 + len(value)
        for row in known:
            if row[0] == tag:
                fields[row[1]] = _check(row, value)
                break
        else:
            if tag < _SKIP:
                raise TlvError("tag %d" % tag)
    return kind, fields


# Credentials are not a field: 32 of them exceed a length of one byte.
def _credentials(blob):
    if len(blob) % (ID + SECRET) or len(blob) > MAX_CREDENTIALS * (ID + SECRET):
        raise TlvError("length", "creds")
    return blob


# The value that a field's bytes stand for.
def _check(row, value):
    _, name, kind, low, high = row
    if kind == _NUMBER:
        if len(value) != 2:
            raise TlvError("length", name)
        number = value[0] << 8 | value[1]
        if number & 0x8000:
            number -= 0x10000
        if not low <= number <= high:
            raise TlvError("range", name)
        return number
    if not low <= len(value) <= high:
        raise TlvError("length", name)
    if kind == _BYTES:
        return value
    try:
        value = value.decode()
    except ValueError:  # UnicodeError
        raise TlvError("text", name)
    rule = _RULES.get(name)
    if rule and not rule(value):
        raise TlvError("value", name)
    return value


def _is_url(text):
    try:
        return bool(url.parse(text))
    except ValueError:
        return False


_RULES = {
    "orch_url": _is_url,
    "window": lambda text: not text or parse_window(text) is not None,
    "channel": lambda text: text in ("stable", "beta"),
}
