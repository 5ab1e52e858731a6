# EC1: an authenticated key exchange inside BluFi's negotiation frames, on P-256. Every message
# has a fixed length and begins EC 01 type suite, so that nothing of Espressif's own can be taken
# for it.
#
#   C_HELLO  client   nonce[16] x[32] y[32]     suite 21: SPAKE2 (RFC 9382) with the label's PIN
#   S_HELLO  beacon   nonce[16] x[32] y[32]     suite 11: ECDH with a long proof of possession
#   C_FIN    client   tag[16]                   both: AES-128-CCM records afterwards
#   S_FIN    beacon   tag[16]
#   ABORT    either   code              a beacon adds u8 failures so far, u16 BE seconds to wait
#
# The client confirms first: who only plays the client learns nothing to test PINs with, and the
# beacon can count failures. The bytes and the order of hashing are here; each side brings its own
# hkdf(salt, ikm, info, length) and hmac(key, *parts).

from hashlib import sha256

from . import const

MAGIC = const(0xEC)
VERSION = const(1)

C_HELLO = const(0x01)
S_HELLO = const(0x02)
C_FIN = const(0x03)
S_FIN = const(0x04)
ABORT = const(0x7F)

SPAKE2 = const(0x21)
ECDH = const(0x11)

# Codes of an ABORT.
A_VERSION = const(1)
A_SUITE = const(2)
A_POINT = const(3)
A_CONFIRM = const(4)
A_LOCKED = const(5)
A_STATE = const(6)
A_CLOSED = const(7)  # nobody may provision now: press the button
A_WAIT = const(8)  # too soon after a failure

NONCE = const(16)
TAG = const(16)
KEYS = const(50)  # two AES keys, two nonce prefixes
MIN_POP = const(8)  # a proof in the key derivation can be guessed offline: no PIN will do
MAX_POP = const(255)

_HEADER = const(4)
_HELLO = const(80)
_SECRET = const(48)  # 16 bytes more than the modulus has: w is not biased
_ABORT = const(4)  # the long form


# The exchange is over: by our judgement, or because the peer said so. A beacon that judges secrets
# also says how many guesses have failed, and for how many seconds it hears no other.
class Abort(Exception):
    def __init__(self, code, by_peer=False, failures=None, wait=0):
        super().__init__("ec1 abort %d" % code)
        self.code = code
        self.by_peer = by_peer
        self.failures = failures
        self.wait = wait


# Whether a negotiation payload is ours; Espressif's phones begin with 00 to 04.
def is_ec1(data):
    return len(data) > 0 and data[0] == MAGIC


def build_message(type_, suite, body):
    return bytes((MAGIC, VERSION, type_, suite)) + body


# The message that tells the peer of an Abort.
def build_abort(abort, suite):
    body = bytes((abort.code,))
    if abort.failures is not None:
        body += bytes((min(abort.failures, 255),)) + min(abort.wait, 0xFFFF).to_bytes(2, "big")
    return build_message(ABORT, suite, body)


# The body of the one message that may come now, or Abort. `suites` are those acceptable.
def parse_message(data, type_, suites):
    if len(data) < _HEADER or data[0] != MAGIC:
        raise Abort(A_STATE)
    if data[1] != VERSION:
        raise Abort(A_VERSION)
    size = len(data) - _HEADER
    if data[2] == ABORT and size == 1:
        raise Abort(data[4], True)
    if data[2] == ABORT and size == _ABORT:
        raise Abort(data[4], True, data[5], data[6] << 8 | data[7])
    if data[2] != type_ or size != (_HELLO if type_ in (C_HELLO, S_HELLO) else TAG):
        raise Abort(A_STATE)
    if data[3] not in suites:
        raise Abort(A_SUITE)
    return data[_HEADER:]


# TH binds version, suite, nonces and points: nothing of the two hellos can be exchanged unseen.
def hash_hellos(c_hello, s_hello):
    digest = sha256(c_hello)
    digest.update(s_hello)
    return digest.digest()


# The password as 48 bytes; w is this number modulo the group's order.
def derive_password(hkdf, pin, name):
    return hkdf(b"blufi-ec1 w", pin, name, _SECRET)


# SPAKE2: TT of RFC 9382 §3.3 with points as x ‖ y, and Ke ‖ Ka out of it.
def derive_spake2(name, c_hello, s_hello, k, w):
    tt = b""
    for part in (
        b"blufi-client",
        name,
        b"\4" + c_hello[_HEADER + NONCE :],
        b"\4" + s_hello[_HEADER + NONCE :],
        b"\4" + k,
        w,
    ):
        tt += len(part).to_bytes(8, "little") + part
    return tt, sha256(tt).digest()


# ECDH: z is the shared x coordinate, and the proof goes in with its length.
def derive_ecdh(hkdf, c_hello, s_hello, z, pop):
    proof = z + bytes((len(pop),)) + pop
    root = hkdf(hash_hellos(c_hello, s_hello), proof, b"blufi-ec1 root", 32)
    return c_hello + s_hello, root


# The client's tag, the beacon's tag, and the KEYS bytes for the records.
def derive_keys(hkdf, hmac, c_hello, s_hello, tt, root):
    th = hash_hellos(c_hello, s_hello)
    confirm = hkdf(b"", root[16:], b"ConfirmationKeys" + th, 32)
    return (
        hmac(confirm[:16], tt)[:TAG],
        hmac(confirm[16:], tt)[:TAG],
        hkdf(th, root[:16], b"blufi-ec1 keys", KEYS),
    )
