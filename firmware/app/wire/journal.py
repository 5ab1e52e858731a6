# The rule of a journal entry, [seq, utc, stage, code, detail]: the beacon holds to it what it
# stores and delivers, the orchestrator what it receives. An entry that breaks it is mended rather
# than refused: one odd entry must not cost the report that carries it.

from . import const
from .shapes import is_number

MAX_ENTRIES = const(8)  # in one report, and in the beacon's ring
MAX_DETAIL = const(80)  # characters
MAX_WORD = const(16)  # characters of a stage or a code
MAX_SEQ = const(0x7FFFFFFF)
MAX_UTC = const(0xFFFFFFFFFF)

_WORD = const("abcdefghijklmnopqrstuvwxyz0123456789_")


# A stage or a code.
def is_word(value):
    return value != "" and to_word(value) == value


# A word made of whatever there is: cut to its length, signs in place of what is no letter of it.
# "" when nothing is left to recognise it by.
def to_word(value):
    if not isinstance(value, str):
        return ""
    value = "".join([c if c in _WORD else "_" for c in value.lower()[:MAX_WORD]])
    return value if value.strip("_") else ""


# Text of at most `limit` characters that every database and every JSON reader takes: no control
# characters, no halves of surrogate pairs.
def printable(text, limit):
    return "".join(["\ufffd" if c < " " or "\ud7ff" < c < "\ue000" else c for c in text[:limit]])


# An entry within the bounds, from whatever was written, stored or sent; None when nothing can be
# made of it. An unusable time is no time. What a later version puts behind the detail is passed
# over.
def repair_entry(entry):
    if not isinstance(entry, (list, tuple)) or len(entry) < 5:
        return None
    seq, utc, stage, code, detail = entry[:5]
    stage = to_word(stage)
    code = to_word(code)
    if not (is_number(seq, 1, MAX_SEQ) and stage and code and isinstance(detail, str)):
        return None
    return [
        seq,
        utc if is_number(utc, 0, MAX_UTC) else 0,
        stage,
        code,
        printable(detail, MAX_DETAIL),
    ]
