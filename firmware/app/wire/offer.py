# Checks the form of an offer, the orchestrator's answer to a poll. A well-formed offer is not
# trusted; this only makes sure that the rest of the update works with values of known types and
# sizes.

from . import const, versions
from .shapes import MAX_SIZE, is_hex, is_number

MAX_BODY = const(10240)  # bytes of JSON: the envelope's bound and the rest
_MAX_URL = const(200)
_MAX_TIME = const(0xFFFFFFFFFF)
MAX_BRACKETS = const(24)  # bounds the nesting and the memory of a JSON parser


# An answer is not an offer; `field` breaks the contract.
class OfferError(ValueError):
    def __init__(self, field):
        super().__init__("offer: " + field)
        self.field = field


# Whether a value is a path on the same server, without characters that could end a request line.
def _is_path(value):
    if not isinstance(value, str) or not 1 < len(value) <= _MAX_URL:
        return False
    if value[0] != "/" or value[1] == "/":
        return False
    return all("!" <= c <= "~" for c in value)


# Raises OfferError unless the decoded JSON is an offer. Unknown fields are ignored.
def check_offer(doc):
    if not isinstance(doc, dict):
        raise OfferError("body")
    for name in ("firmware_id", "attempt_id"):
        if not is_hex(doc.get(name), 24):
            raise OfferError(name)
    if not is_hex(doc.get("checksum"), 64):
        raise OfferError("checksum")
    try:
        versions.parse(doc.get("version"))
    except ValueError:
        raise OfferError("version") from None
    if not is_number(doc.get("size"), 1, MAX_SIZE):
        raise OfferError("size")
    if not _is_path(doc.get("download_url")):
        raise OfferError("download_url")
    if type(doc.get("required")) is not bool:
        raise OfferError("required")
    manifest = doc.get("manifest")
    if manifest is not None and not isinstance(manifest, dict):
        raise OfferError("manifest")
    for name in ("not_before", "not_after", "poll_after_s", "server_time"):
        if name in doc and not is_number(doc[name], 0, _MAX_TIME):
            raise OfferError(name)
    if not is_number(doc.get("utc_off", 0), -720, 840):
        raise OfferError("utc_off")
