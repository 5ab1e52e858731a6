# Shapes of single values, shared by everything that reads or writes JSON between the two sides.

from . import const

_HEX = const("0123456789abcdef")
_NAME = const("abcdefghijklmnopqrstuvwxyz0123456789-_")

MAX_SIZE = 0x1000000  # bytes of an image


# Lower-case hex of exactly this many characters.
def is_hex(value, length):
    return isinstance(value, str) and len(value) == length and not value.strip(_HEX)


# A whole number in range; True is an int to CPython and is not one here.
def is_number(value, low, high):
    return type(value) is int and low <= value <= high


# A name that fits a path, a table's label and a device type: a-z 0-9 - _, first no sign.
def is_name(value, limit=32):
    if not isinstance(value, str) or not 0 < len(value) <= limit or value[0] in "-_":
        return False
    return not value.strip(_NAME)


# Text of at most `limit` bytes, cut between characters: what a detail is made to fit with.
def clip_text(text, limit):
    data = text.encode()
    if len(data) <= limit:
        return text
    while limit and data[limit] & 0xC0 == 0x80:
        limit -= 1
    return data[:limit].decode()


# "HH:MM-HH:MM" as minutes of the day, None for anything else or for a window without length.
def parse_window(text):
    parts = text.split("-")
    if len(parts) != 2:
        return None
    ends = []
    for part in parts:
        hour, _, minute = part.strip().partition(":")
        if len(hour) > 2 or len(minute) != 2:
            return None
        try:
            ends.append(int(hour) * 60 + int(minute))
        except ValueError:
            return None
        if not 0 <= ends[-1] < 1440 or not 0 <= int(minute) < 60:
            return None
    return None if ends[0] == ends[1] else tuple(ends)
