# The rules of a journal entry, [seq, utc, stage, code, detail]. The beacon applies them to the
# entries that it stores and delivers, the orchestrator to those that it receives. An entry that
# breaks them is repaired rather than refused: one odd entry must not cost the report that carries
# it.

from . import const
from .shapes import is_number

MAX_ENTRIES = const(8)  # in one report, and in the beacon's ring
MAX_DETAIL = const(80)  # characters
MAX_WORD = const(16)  # characters of a stage or a code
MAX_SEQ = const(0x7FFFFFFF)
MAX_UTC = const(0xFFFFFFFFFF)

_WORD = const("abcdefghijklmnopqrstuvwxyz0123456789_")


# Makes a stage or code of any value: cut to its length, with `_` in place of characters that are
# not allowed. "" when nothing recognisable is left.
def to_word(value):
    if not isinstance(value, str):
        return ""
    value = "".join([c if c in _WORD else "_" for c in value.lower()[:MAX_WORD]])
    return value if value.strip("_") else ""


# Text of at most `limit` characters that every database and JSON reader accepts: control characters
# and halves of surrogate pairs are replaced.
def printable(text, limit):
    return "".join(["\ufffd" if c < " " or "\ud7ff" < c < "\ue000" else c for c in text[:limit]])


# Returns an entry within the bounds, made of any value; None when that is impossible. An unusable
# time becomes 0. Parts behind the detail, which a later version may add, are ignored.
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
