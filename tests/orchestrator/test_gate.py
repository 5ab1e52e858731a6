"""Beacon authentication, as a function of values."""

import hashlib
import hmac
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beacon_ota.orchestrator.gate import Nonces, Refused, identify, rekey
from beacon_ota.orchestrator.limits import LIMITS
from beacon_ota.wire import auth

NOW = 1_800_000_000
KEY, OTHER = b"k" * 32, b"o" * 32
NONCE = "0011223344556677"


@dataclass
class Known:
    key: bytes = KEY
    next_key: bytes | None = None
    given_keys: tuple[bytes, ...] = ()
    nonces: Nonces = field(default_factory=lambda: Nonces(NOW - 1000))


def header(key=KEY, method="GET", target="/x?a=b", body=b"", ts=NOW, nonce=NONCE, who="b1") -> str:
    digest = hashlib.sha256(body).hexdigest()
    text = auth.request_text(method, target, who, ts, nonce, digest)
    return auth.header(who, ts, nonce, hmac.digest(key, text, "sha256").hex())


def ask(known, value, method="GET", target="/x?a=b", body=b"", now=NOW):
    return identify({"b1": known}.get, value, method, target, body, now)


def code(known, value, **given) -> str:
    with pytest.raises(Refused) as caught:
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
    known = Known(next_key=OTHER)
    ask(known, header())
    for value, key in (
        (header(), KEY),  # the same again
        (header(ts=NOW - 400), KEY),
        (header(ts=NOW + 400, key=OTHER), OTHER),
    ):
        with pytest.raises(Refused) as caught:
            ask(known, value)
        assert caught.value.caller is not None and caught.value.claimed_id == "b1"
        name, seal = caught.value.caller.seal(401, "ab")
        expected = hmac.digest(key, f"{NONCE}\n401\nab".encode(), "sha256").hex()
        assert (name, seal) == (b"x-beacon-mac", expected.encode())
    for value, claimed in (
        (header(key=b"x" * 32), "b1"),
        (header(key=b"x" * 32, ts=NOW - 400), "b1"),
        (header(who="b2"), ""),
        ("", ""),
    ):
        with pytest.raises(Refused) as caught:
            ask(known, value)
        assert caught.value.caller is None and caught.value.claimed_id == claimed


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
    sent = bytes.fromhex(rekey(KEY, OTHER, NONCE))
    assert bytes(a ^ b for a, b in zip(sent, pad, strict=True)) == OTHER


def test_nothing_signed_before_the_start_is_accepted():
    known = Known(nonces=Nonces(NOW))
    assert code(known, header(ts=NOW - 1)) == "clock_skew"
    ask(known, header(ts=NOW))


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 150)), min_size=1, max_size=600))
def test_no_nonce_is_ever_taken_twice_and_memory_is_bounded(requests):
    nonces = Nonces(NOW)
    taken = set()
    for ts, number in requests:
        if 400 - ts > auth.MAX_SKEW:
            continue  # the gate has refused it for its time
        nonce = f"{number:016x}"
        if nonces.use(nonce, NOW + ts, NOW + 400.0):
            assert (nonce, ts) not in taken
            taken.add((nonce, ts))
        assert len(nonces) <= LIMITS.nonces


def test_a_beacon_that_asks_slowly_is_never_refused():
    nonces = Nonces(NOW)
    for number in range(5000):
        assert nonces.use(f"{number:016x}", NOW + number, NOW + number)


@pytest.mark.parametrize("pause", [0.001, 0.01, 1.0, 10.0, 60.0])
def test_each_request_is_taken_once_also_the_one_that_makes_room(pause):
    nonces = Nonces(NOW)
    refused = 0
    for number in range(1000):
        now = NOW + number * pause
        taken = nonces.use(f"{number:016x}", int(now), now)
        assert taken is (int(now) >= nonces.floor)  # a new one is refused by its time alone
        refused += not taken
        assert nonces.use(f"{number:016x}", int(now), now) is False
    # Who asks a thousand times a second waits for the next second when the memory is full.
    assert bool(refused) is (pause < 0.01)


def test_a_beacon_that_asks_each_minute_is_remembered_by_little():
    nonces = Nonces(NOW)
    for number in range(1440):
        assert nonces.use(f"{number:016x}", NOW + 60 * number, NOW + 60.0 * number)
        assert len(nonces) <= 16


@given(st.text(max_size=300))
def test_any_header_gives_a_named_refusal(value):
    assert code(Known(), value) in ("unknown_beacon", "bad_mac", "clock_skew")


def test_any_key_that_was_given_signs():
    third = b"t" * 32
    known = Known(next_key=third, given_keys=(OTHER, third))
    for number, key in enumerate((KEY, OTHER, third)):
        assert ask(known, header(key, nonce=f"{number:016x}")).key == key
    assert code(known, header(b"x" * 32, nonce="9" * 16)) == "bad_mac"
