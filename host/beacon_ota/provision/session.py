"""The client's part of EC1 (:mod:`beacon_ota.wire.ec1`): proves a PIN or a proof of possession to a
beacon, makes the beacon prove that it knows it too, and leaves both with the keys of a session.

No I/O: the caller carries the messages. ::

    client = Initiator(b"BLUFI_A1B2C3", pin="73914826")
    send(client.hello())
    send(client.answer(receive()))
    link.protect(SEALED, client.finish(receive()))

Rules:
  * one exchange per object; the scalar and the nonce are fresh and used once
  * suite 21 (SPAKE2) for PINs: an eavesdropper or an impostor gets one guess per exchange
  * suite 11 (ECDH) only for proofs of 8 bytes and more, for it lets them be guessed offline
  * nothing is trusted before the beacon's tag fitted; a message out of turn ends the exchange
"""

import hmac
import secrets
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESCCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from beacon_ota.errors import BeaconOtaError, DeniedError, InputError, UsageError
from beacon_ota.provision import p256
from beacon_ota.wire import ec1, spake2
from beacon_ota.wire.records import Records

SEALED = 0x22
"""The protection of :meth:`beacon_ota.wire.blufi.Link.protect` in a session: all encrypted."""

_ABORTS: dict[int, BeaconOtaError] = {
    ec1.A_VERSION: InputError("ec1_version", "the beacon speaks another version of EC1"),
    ec1.A_SUITE: InputError("ec1_suite", "the beacon does not take this kind of secret"),
    ec1.A_POINT: InputError("ec1_point", "a public point was refused"),
    ec1.A_STATE: InputError(
        "ec1_state", "a message out of turn, or a beacon whose memory does not take a guess"
    ),
    ec1.A_CLOSED: DeniedError(
        "closed", "the beacon will not be provisioned now: press its button briefly"
    ),
}
MAX_FAILURES = 10


class SecretError(DeniedError):
    """A PIN or proof of possession that does not count: ``wrong_secret``, ``too_soon``, ``locked``.

    Args:
        failures: wrong ones so far, as the beacon counts; None when it did not say.
        wait: seconds until it hears the next.
    """

    def __init__(self, code: str, message: str, failures: int | None = None, wait: int = 0):
        super().__init__(code, message)
        self.failures, self.wait = failures, wait


def error_from_abort(abort: ec1.Abort) -> BeaconOtaError:
    """Return the named error for an abort of either side."""
    if abort.code == ec1.A_LOCKED or (abort.failures or 0) >= MAX_FAILURES:
        return SecretError(
            "locked",
            f"{MAX_FAILURES} wrong secrets in a row have locked the beacon: cut its power, give it "
            "back, and within ten seconds hold the button for two",
            abort.failures,
        )
    if abort.code == ec1.A_CONFIRM and not abort.by_peer:
        return SecretError("wrong_secret", "the beacon does not know this secret: an impostor?")
    if abort.code == ec1.A_CONFIRM:
        count = f" ({abort.failures} of {MAX_FAILURES})" if abort.failures else ""
        return SecretError(
            "wrong_secret",
            f"that is not the PIN or proof of possession on this beacon's label{count}; it hears "
            f"the next one in {abort.wait} s",
            abort.failures,
            abort.wait,
        )
    if abort.code == ec1.A_WAIT:
        return SecretError(
            "too_soon",
            f"after {abort.failures} wrong secrets the beacon hears the next one in {abort.wait} s",
            abort.failures,
            abort.wait,
        )
    known = _ABORTS.get(abort.code)
    if known is None:
        return InputError("ec1_abort", "the beacon gave an unknown reason", found=abort.code)
    who = "the beacon" if abort.by_peer else "this side"
    return type(known)(known.code, f"{known.message} ({who} ended the exchange)")


def hkdf(salt: bytes, ikm: bytes, info: bytes, length: int) -> bytes:
    """HKDF-SHA256 (RFC 5869) with the argument order that the shared schedule uses."""
    return HKDF(hashes.SHA256(), length, salt, info).derive(ikm)


def hmac_sha256(key: bytes, *parts: bytes) -> bytes:
    """HMAC-SHA256 over the parts as one message."""
    return hmac.digest(key, b"".join(parts), "sha256")


class Ccm:
    """AES-128-CCM with 8-byte tags, as :class:`beacon_ota.wire.records.Records` wants it."""

    def __init__(self, key: bytes):
        self._ccm = AESCCM(key, tag_length=8)

    def seal(self, nonce: bytes, aad: bytes, data: bytes) -> bytes:
        """Return ciphertext ‖ tag."""
        return self._ccm.encrypt(nonce, data, aad)

    def open(self, nonce: bytes, aad: bytes, sealed: bytes) -> bytes | None:
        """Return the plaintext, or None when the tag does not fit."""
        try:
            return self._ccm.decrypt(nonce, sealed, aad)
        except (InvalidTag, ValueError):  # ValueError: shorter than a tag
            return None


def pin_scalar(pin: str, name: bytes) -> int:
    """Return w, the PIN as a scalar bound to the beacon's name."""
    return int.from_bytes(ec1.derive_password(hkdf, pin.encode(), name), "big") % p256.ORDER


def enroll_pin(pin: str, name: bytes) -> bytes:
    """Return what a beacon stores in place of its PIN: w ‖ w·M ‖ w·N, 160 bytes (NVS ``pin_w``)."""
    w = pin_scalar(pin, name)
    stored = w.to_bytes(32, "big")
    for point in (spake2.M, spake2.N):
        stored += _encode_finite(p256.multiply_point(w, p256.decode_point(point)))
    return stored


class Initiator:
    """One exchange, from the client's side.

    Args:
        name: the name the beacon advertises, the identity both sides hash.
        pin: the PIN of the label (suite 21), or
        pop: the proof of possession, 8 to 255 bytes (suite 11). Exactly one of the two.
        random: gives n random bytes; for vectors.

    Raises:
        UsageError: ``ec1_secret``, neither or both secrets, or a proof of a wrong length.
    """

    def __init__(
        self,
        name: bytes,
        *,
        pin: str | None = None,
        pop: bytes | None = None,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ):
        if (pin is None) == (pop is None) or pin == "":
            raise UsageError("ec1_secret", "give either a PIN or a proof of possession")
        if pop is not None and not ec1.MIN_POP <= len(pop) <= ec1.MAX_POP:
            raise UsageError(
                "ec1_secret",
                "a proof of possession has 8 to 255 bytes; use a PIN for anything shorter",
                found=len(pop),
                expected=f"{ec1.MIN_POP} to {ec1.MAX_POP} bytes",
            )
        self.suite = ec1.SPAKE2 if pop is None else ec1.ECDH
        self._name = name
        self._pop = pop or b""
        self._w = 0 if pin is None else pin_scalar(pin, name)
        self._random = random
        self._client = b""
        self._expected = self._keys = b""
        self._awaits = ec1.C_HELLO

    def hello(self) -> bytes:
        """Return C_HELLO: x·G, blinded with w·M under suite 21."""
        self._take_turn(ec1.C_HELLO)
        self._x = 0
        while not 0 < self._x < p256.ORDER:
            self._x = int.from_bytes(self._random(32), "big")
        nonce = self._random(ec1.NONCE)
        public = p256.multiply_point(self._x, p256.GENERATOR)
        if self.suite == ec1.SPAKE2:
            public = p256.add_points(
                public, p256.multiply_point(self._w, p256.decode_point(spake2.M))
            )
        self._client = ec1.build_message(ec1.C_HELLO, self.suite, nonce + _encode_finite(public))
        self._awaits = ec1.S_HELLO
        return self._client

    def answer(self, message: bytes) -> bytes:
        """Take S_HELLO and return C_FIN.

        Raises:
            BeaconOtaError: :func:`error_from_abort` of the beacon's abort, or ``ec1_point`` when
                its point is not on the curve. The exchange is over.
        """
        self._take_turn(ec1.S_HELLO)
        body = self._parse(message, ec1.S_HELLO)
        try:
            peer: p256.Point | None = p256.decode_point(body[ec1.NONCE :])
        except ValueError as error:
            raise error_from_abort(ec1.Abort(ec1.A_POINT)) from error
        if self.suite == ec1.SPAKE2:
            blind = p256.multiply_point(self._w, p256.decode_point(spake2.N))
            peer = p256.add_points(peer, p256.negate_point(blind)) if blind else peer
        if peer is None:
            raise error_from_abort(ec1.Abort(ec1.A_POINT))
        shared = _encode_finite(p256.multiply_point(self._x, peer))
        self._x = 0
        if self.suite == ec1.SPAKE2:
            w = self._w.to_bytes(32, "big")
            tt, root = ec1.derive_spake2(self._name, self._client, message, shared, w)
        else:
            tt, root = ec1.derive_ecdh(hkdf, self._client, message, shared[:32], self._pop)
        mine, self._expected, self._keys = ec1.derive_keys(
            hkdf, hmac_sha256, self._client, message, tt, root
        )
        self._awaits = ec1.S_FIN
        return ec1.build_message(ec1.C_FIN, self.suite, mine)

    def finish(self, message: bytes) -> Records:
        """Take S_FIN and return the record layer of the session.

        Raises:
            BeaconOtaError: as :meth:`answer`; ``wrong_secret`` when the beacon's tag does not fit,
                in which case the peer is an impostor: it has seen this side's tag.
        """
        self._take_turn(ec1.S_FIN)
        keys, self._keys = self._keys, b""
        tag = self._parse(message, ec1.S_FIN)
        if not hmac.compare_digest(tag, self._expected):
            raise error_from_abort(ec1.Abort(ec1.A_CONFIRM))
        return Records(Ccm, keys, False)

    def _take_turn(self, step: int) -> None:
        # A step is taken once; only its success sets the next.
        if self._awaits != step:
            raise UsageError("ec1_used", "an exchange goes hello, answer, finish, each once")
        self._awaits = 0

    def _parse(self, message: bytes, type_: int) -> bytes:
        try:
            return ec1.parse_message(message, type_, (self.suite,))
        except ec1.Abort as abort:
            raise error_from_abort(abort) from abort


def _encode_finite(point: p256.Point | None) -> bytes:
    # Infinity comes out of this exchange with probability 2^-256: a scalar of zero.
    if point is None:
        raise error_from_abort(ec1.Abort(ec1.A_POINT))
    return p256.encode_point(point)
