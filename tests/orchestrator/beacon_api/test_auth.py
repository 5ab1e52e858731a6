"""Beacon authentication, as a function of values."""

import hashlib
import hmac
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beacon_ota.orchestrator.beacon_api.auth import (
    AuthenticationError,
    authenticate_request,
    wrap_new_key,
)
from beacon_ota.orchestrator.core.replay import ReplayGuard, ReplaySlot
from beacon_ota.wire import auth

NOW = 1_800_000_000
KEY, OTHER = b"k" * 32, b"o" * 32
NONCE = "0011223344556677"


@dataclass
class Known:
    key: bytes = KEY
    next_key: bytes | None = None
    given_keys: tuple[bytes, ...] = ()
    replay: ReplaySlot = field(default_factory=lambda: slot())


def slot() -> ReplaySlot:
    """What is remembered of a beacon that nobody has heard of yet."""
    with tempfile.TemporaryDirectory() as folder:
        return ReplayGuard(Path(folder) / "replays", NOW, fresh=True).slot_for("b1")


def header(key=KEY, method="GET", target="/x?a=b", body=b"", ts=NOW, nonce=NONCE, who="b1") -> str:
    digest = hashlib.sha256(body).hexdigest()
    text = auth.request_text(method, target, who, ts, nonce, digest)
    return auth.build_header(who, ts, nonce, hmac.digest(key, text, "sha256").hex())


def ask(known, value, method="GET", target="/x?a=b", body=b"", now=NOW):
    return authenticate_request({"b1": known}.get, value, method, target, body, now)


def code(known, value, **given) -> str:
    with pytest.raises(AuthenticationError) as caught:
        ask(known, value, **given)
    assert caught.value.status == 401
    return caught.value.code


def test_a_signed_request_is_accepted():
    known = Known()
    caller = ask(known, header())
    assert caller.beacon is known and caller.key == KEY


def test_everything_signed_is_covered():
    for changed in (
        {"method": "POST"},
        {"target": "/x?a=c"},
        {"target": "/x"},
        {"body": b"x"},
    ):
        assert code(Known(), header(), **changed) == "bad_mac"


def test_refusals():
    assert code(Known(), "") == "unknown_beacon"
    assert code(Known(), "Basic abc") == "unknown_beacon"
    assert code(Known(), header(who="b2")) == "unknown_beacon"
    assert code(Known(), header(key=OTHER)) == "bad_mac"
    assert code(Known(), header(ts=NOW - 301)) == "clock_skew"
    assert code(Known(), header(ts=NOW + 301)) == "clock_skew"
    known = Known()
    ask(known, header())
    assert code(known, header()) == "nonce_used"


def test_a_refusal_can_be_sealed_for_who_signed_it_and_for_nobody_else():
    known = Known(next_key=OTHER, given_keys=(OTHER,))
    ask(known, header())
    for value, key in (
        (header(), KEY),  # the same again
        (header(ts=NOW - 400), KEY),
        (header(ts=NOW + 400, key=OTHER), OTHER),
    ):
        with pytest.raises(AuthenticationError) as caught:
            ask(known, value)
        assert caught.value.caller is not None and caught.value.claimed_sender == "b1"
        name, seal = caught.value.caller.sign_response(401, "ab")
        expected = hmac.digest(key, f"{NONCE}\n401\nab".encode(), "sha256").hex()
        assert (name, seal) == (b"x-beacon-mac", expected.encode())
    for value, claimed in (
        (header(key=b"x" * 32), "b1"),
        (header(key=b"x" * 32, ts=NOW - 400), "b1"),
        (header(who="b2"), ""),
        ("", ""),
    ):
        with pytest.raises(AuthenticationError) as caught:
            ask(known, value)
        assert caught.value.caller is None and caught.value.claimed_sender == claimed


def test_a_wrong_mac_uses_no_nonce():
    known = Known()
    assert code(known, header(key=OTHER)) == "bad_mac"
    ask(known, header())


def test_the_next_key_is_accepted_beside_the_old_one():
    known = Known(next_key=OTHER, given_keys=(OTHER,))
    assert ask(known, header()).key == KEY
    assert ask(known, header(key=OTHER, nonce="f" * 16)).key == OTHER


def test_a_new_key_travels_under_the_old_one():
    pad = hmac.digest(KEY, b"rekey\n" + NONCE.encode(), "sha256")
    sent = bytes.fromhex(wrap_new_key(KEY, OTHER, NONCE))
    assert bytes(a ^ b for a, b in zip(sent, pad, strict=True)) == OTHER


def test_a_request_that_is_too_old_to_know_is_told_when_to_sign():
    known = Known()
    for number in range(300):
        value = header(nonce=f"{number:016x}")
        try:
            ask(known, value)
        except AuthenticationError as error:
            assert error.code == "clock_skew" and error.sign_at is not None
            assert NOW < error.sign_at <= NOW + 16
            ask(known, header(nonce=f"{number:016x}", ts=error.sign_at))
            return
    raise AssertionError("300 requests in one second are not remembered one by one")


@given(st.text(max_size=300))
def test_any_header_gives_a_named_refusal(value):
    assert code(Known(), value) in ("unknown_beacon", "bad_mac", "clock_skew")


def test_any_key_that_was_given_signs():
    third = b"t" * 32
    known = Known(next_key=third, given_keys=(OTHER, third))
    for number, key in enumerate((KEY, OTHER, third)):
        assert ask(known, header(key, nonce=f"{number:016x}")).key == key
    assert code(known, header(b"x" * 32, nonce="9" * 16)) == "bad_mac"
