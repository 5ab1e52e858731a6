# The status report: the beacon builds it, the orchestrator checks it, and both know the same words.
# The words are stable: they are metric labels and what an operator filters by. Whatever a beacon
# may send is bounded here, so that neither side stores what nobody asked for.

from . import versions
from .shapes import is_hex, is_number

try:
    from micropython import const
except ImportError:

    def const(value):
        return value


MAX_BODY = const(8192)  # bytes of JSON
MAX_DETAIL = const(200)  # bytes of UTF-8
MAX_JOURNAL = const(8)  # entries in one report
MAX_ENTRY_DETAIL = const(80)  # characters
MAX_WORD = const(16)  # characters of a journal entry's stage or code
MAX_SEQ = const(0x7FFFFFFF)
MAX_NUMBER = const(0xFFFFFFFFFF)  # of bytes, milliseconds, seconds

# `idle` is a report outside any attempt; the other words are an attempt's way, in this order.
STATUSES = ("idle", "downloading", "verifying", "rebooting", "success", "failed", "rolled_back")
FINAL = ("success", "failed", "rolled_back")

CODES = {
    "download": ("connect", "http", "stall", "truncated", "timeout"),
    "flash": ("erase", "write", "readback", "no_slot"),
    "verify": (
        "checksum",
        "signature",
        "expired",
        "downgrade",
        "device_type",
        "image",
        "decrypt",
        "known_bad",
    ),
    "boot": ("not_booted", "self_test", "crash", "watchdog", "power"),
}

_NUMBERS = (
    "bytes",
    "duration_ms",
    "trials",
    "reset_cause",
    "heap_free_min",
    "advertising_paused_ms",
)
_FLAGS = ("clock_unset", "insecure")
_WORD = "abcdefghijklmnopqrstuvwxyz0123456789_"


# A report that breaks the contract: which field, and what is wrong with it.
class ReportError(ValueError):
    def __init__(self, field, reason):
        super().__init__("%s: %s" % (field, reason))
        self.field = field
        self.reason = reason


# Raises ReportError unless the decoded JSON is a report. Fields that nobody defined are passed
# over: a newer beacon may say more than this side understands.
def check(doc):
    if not isinstance(doc, dict):
        raise ReportError("body", "not an object")
    status = doc.get("update_status")
    if not isinstance(status, str) or status not in STATUSES:
        raise ReportError("update_status", "unknown word")
    _version(doc, "firmware_version")
    if not is_number(doc.get("updated_at"), 0, MAX_NUMBER):
        raise ReportError("updated_at", "not a time")
    if not is_hex(doc.get("image_sha256"), 64):
        raise ReportError("image_sha256", "not a SHA-256")
    if status == "idle":
        for name in ("attempt_id", "firmware_id"):
            if name in doc:
                raise ReportError(name, "does not go with idle")
    else:
        _version(doc, "previous_version")
        for name in ("attempt_id", "firmware_id"):
            if not is_hex(doc.get(name), 24):
                raise ReportError(name, "not 24 hex digits")
    if status == "downloading" and not is_number(doc.get("progress"), 0, 100):
        raise ReportError("progress", "not a percentage")
    if status == "failed" or status == "rolled_back":
        _reason(doc, status)
    for name in _NUMBERS:
        if name in doc and not is_number(doc[name], 0, MAX_NUMBER):
            raise ReportError(name, "not a number in range")
    for name in _FLAGS:
        if name in doc and doc[name] is not True:
            raise ReportError(name, "present only when true")
    _journal(doc.get("journal", ()))


def _version(doc, name):
    try:
        versions.parse(doc.get(name))
    except ValueError:
        raise ReportError(name, "not a version") from None


# Why an attempt ended without the release: only a boot can be rolled back.
def _reason(doc, status):
    stage = doc.get("stage")
    if not isinstance(stage, str) or stage not in CODES:
        raise ReportError("stage", "unknown word")
    if status == "rolled_back" and stage != "boot":
        raise ReportError("stage", "only a boot rolls back")
    code = doc.get("code")
    if not isinstance(code, str) or code not in CODES[stage]:
        raise ReportError("code", "not a code of this stage")
    _text(doc.get("detail", ""), "detail", MAX_DETAIL)


def _text(value, field, limit):
    if not isinstance(value, str):
        raise ReportError(field, "not text")
    if len(value) > limit:
        raise ReportError(field, "too long")
    try:
        size = len(value.encode())
    except ValueError:  # half of a surrogate pair, spelled out in the JSON
        raise ReportError(field, "not text") from None
    if size > limit:
        raise ReportError(field, "too long")


def _journal(entries):
    if not isinstance(entries, (list, tuple)) or len(entries) > MAX_JOURNAL:
        raise ReportError("journal", "not a list of at most %d" % MAX_JOURNAL)
    last = 0
    for entry in entries:
        if not isinstance(entry, (list, tuple)) or len(entry) != 5:
            raise ReportError("journal", "an entry has five parts")
        seq, utc, stage, code, detail = entry
        if not is_number(seq, last + 1, MAX_SEQ) or not is_number(utc, 0, MAX_NUMBER):
            raise ReportError("journal", "numbers out of range or order")
        last = seq
        for word in (stage, code):
            if not isinstance(word, str) or not 0 < len(word) <= MAX_WORD or word.strip(_WORD):
                raise ReportError("journal", "not a word")
        _text(detail, "journal", 4 * MAX_ENTRY_DETAIL)
        if len(detail) > MAX_ENTRY_DETAIL:
            raise ReportError("journal", "too long")
