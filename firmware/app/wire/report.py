# Checks and repairs status reports on the orchestrator. The words are stable: they are metric
# labels, and operators filter by them. Every field that a beacon may send is bounded here.
#
# A report is refused only if the attempt or its status is missing or unreadable. Any other field
# that breaks the contract is repaired or left out: an attempt's end must not be lost for it.

from . import const, journal, versions
from .shapes import clip_text, is_hex, is_number

MAX_BODY = const(8192)  # bytes of JSON
MAX_DETAIL = const(200)  # bytes of UTF-8
MAX_JOURNAL = journal.MAX_ENTRIES
MAX_NUMBER = const(0xFFFFFFFFFF)  # of bytes, milliseconds, seconds

# `idle` is a report outside any attempt; an attempt goes through the others in this order.
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

# Ends of an attempt for which the image itself is at fault: the beacon will not try it again.
IMAGE_FAULTS = {
    "rolled_back": (("boot", "self_test"), ("boot", "crash"), ("boot", "watchdog")),
    "failed": (("verify", "known_bad"),),
}

NUMBERS = (
    "bytes",
    "duration_ms",
    "trials",
    "reset_cause",
    "heap_free_min",
    "advertising_paused_ms",
    "bytes_fetched",
    "sectors_kept",
    "sectors_written",
)
FLAGS = ("clock_unset", "insecure", "acquitted")


# A report breaks the contract: the field, and what is wrong with it.
class ReportError(ValueError):
    def __init__(self, field, reason):
        super().__init__("%s: %s" % (field, reason))
        self.field = field
        self.reason = reason


# Whether a value can be a stage or a code of the journal.
def is_word(value):
    return value != "" and journal.to_word(value) == value


# Raises ReportError unless every field of the decoded JSON keeps the contract. Unknown fields are
# ignored: a newer beacon may send more than this side understands.
def check_report(doc):
    for field, reason in _find_faults(doc):
        raise ReportError(field, reason)


# Returns (fields, faults): a report within the bounds, and the names of the fields that broke the
# contract and were repaired or left out. Raises ReportError for a field that is needed.
def read_report(doc):
    faults = []
    fields = {}
    for field, reason in _find_faults(doc):
        if field == "body" or field in _needed_fields(doc.get("update_status")):
            raise ReportError(field, reason)
        if not fields:
            fields.update(doc)
        if field not in faults:
            faults.append(field)
        _repair_field(fields, field)
    return fields or doc, faults


# The fields that a report with this status needs. A success needs the hash of the running image.
def _needed_fields(status):
    needed = ["update_status"]
    if status != "idle":
        needed += ["attempt_id", "firmware_id"]
    if status == "success":
        needed.append("image_sha256")
    return needed


# Yields every (field, what is wrong with it), the needed fields first.
def _find_faults(doc):
    if not isinstance(doc, dict):
        yield "body", "not an object"
        return
    status = doc.get("update_status")
    if not isinstance(status, str) or status not in STATUSES:
        yield "update_status", "unknown word"
        return
    for name in ("attempt_id", "firmware_id"):
        if status == "idle":
            if name in doc:
                yield name, "does not go with idle"
        elif not is_hex(doc.get(name), 24):
            yield name, "not 24 hex digits"
    if not is_hex(doc.get("image_sha256"), 64):
        yield "image_sha256", "not a SHA-256"
    for name in ("firmware_version", "previous_version"):
        if (name == "firmware_version" or status != "idle") and not _is_version(doc.get(name)):
            yield name, "not a version"
    if not is_number(doc.get("updated_at"), 0, MAX_NUMBER):
        yield "updated_at", "not a time"
    if status == "downloading" and not is_number(doc.get("progress"), 0, 100):
        yield "progress", "not a percentage"
    if status == "failed" or status == "rolled_back":
        reason = _find_reason_fault(doc, status)
        if reason:
            yield reason
        detail = doc.get("detail", "")
        if not isinstance(detail, str) or _clean_detail(detail) != detail:
            yield "detail", "not text of at most %d bytes" % MAX_DETAIL
    for name in NUMBERS:
        if name in doc and not is_number(doc[name], 0, MAX_NUMBER):
            yield name, "not a number in range"
    for name in FLAGS:
        if name in doc and doc[name] is not True:
            yield name, "present only when true"
    if "journal" in doc:
        reason = _find_journal_fault(doc["journal"])
        if reason:
            yield "journal", reason


def _is_version(value):
    try:
        versions.parse(value)
        return True
    except ValueError:
        return False


# Finds a fault in the reason of a failed attempt: only stage "boot" can be rolled back.
def _find_reason_fault(doc, status):
    stage = doc.get("stage")
    if not isinstance(stage, str) or stage not in CODES:
        return "stage", "unknown word"
    if status == "rolled_back" and stage != "boot":
        return "stage", "only a boot rolls back"
    code = doc.get("code")
    if not isinstance(code, str) or code not in CODES[stage]:
        return "code", "not a code of this stage"
    return None


def _clean_detail(text):
    try:
        text.encode()
    except ValueError:  # half of a surrogate pair, spelled out in the JSON
        text = journal.printable(text, MAX_DETAIL)
    return clip_text(text, MAX_DETAIL)


def _find_journal_fault(entries):
    if not isinstance(entries, (list, tuple)) or len(entries) > MAX_JOURNAL:
        return "not a list of at most %d" % MAX_JOURNAL
    last = 0
    for entry in entries:
        if not isinstance(entry, (list, tuple)) or len(entry) != 5:
            return "an entry has five parts"
        if journal.repair_entry(entry) != list(entry):
            return "an entry is out of bounds"
        if entry[0] <= last:
            return "numbers out of order"
        last = entry[0]
    return None


# Repairs a field that breaks the contract, or leaves it out. An unknown stage or code is moved into
# the detail, where a person can read it.
def _repair_field(fields, field):
    if field == "journal":
        return  # entry by entry: journal.repair_entry
    if field == "stage" or field == "code":
        said = [fields.pop(name, None) for name in ("stage", "code")]
        said = "/".join([name for name in map(journal.to_word, said) if name])
        detail = fields.get("detail")
        if said:
            if isinstance(detail, str) and detail:
                said += ": " + detail
            fields["detail"] = _clean_detail(said)
    elif field == "detail" and isinstance(fields.get(field), str):
        fields[field] = _clean_detail(fields[field])
    else:
        fields.pop(field, None)
