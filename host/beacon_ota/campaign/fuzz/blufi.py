"""Fuzzes the parsers of provisioning: frames, messages and the key exchange.

:func:`fuzz_parsers` mutates conversations in this process and keeps those that reach a new coverage
edge; :mod:`.blufi_air` sends mutations to a virtual beacon. An input must lead to a named refusal
or to the end of the connection. A case is written as its frames in hex, separated by blanks;
:func:`replay_case` runs it again.
"""

import random
import time

from beacon_ota.campaign.fuzz.blufi_air import FuzzResult, fuzz_over_air
from beacon_ota.campaign.fuzz.blufi_frames import (
    KEYS,
    NAME,
    PIN,
    FrameCase,
    fixed_bytes,
    format_case,
    mutate_case,
    proper_conversations,
)
from beacon_ota.campaign.fuzz.coverage import CoverageEdge, trace_edges
from beacon_ota.errors import BeaconOtaError
from beacon_ota.provision import session
from beacon_ota.provision.session import Initiator
from beacon_ota.wire import blufi, ec1, records, spake2, tlv, wifi_reader
from beacon_ota.wire.records import Records

_WATCHED = {module.__file__ for module in (blufi, ec1, records, spake2, tlv, wifi_reader)}


_ACKS = 8


def fuzz_provisioning(seconds: float, seed: int = 1, *, air_share: float = 0.5) -> FuzzResult:
    """Fuzz for some seconds; every choice depends on the seed."""
    found = fuzz_parsers(seconds * (1 - air_share), seed)
    if air_share > 0:
        over = fuzz_over_air(seconds * air_share, seed)
        found.cases += over.cases
        found.air = over.cases
        found.wrong += over.wrong
    return found


def replay_case(text: str) -> None:
    """Run a case of :func:`fuzz_parsers` again.

    Raises:
        AssertionError: the violation.
    """
    _feed_both_ends(tuple(bytes.fromhex(part) if part != "-" else b"" for part in text.split()))


def fuzz_parsers(seconds: float, seed: int = 1) -> FuzzResult:
    """Mutate conversations, guided by their coverage edges."""
    rng = random.Random(seed)
    found = FuzzResult()
    corpus: list[FrameCase] = []
    seen: set[tuple[str, int, int]] = set()
    end = time.monotonic() + seconds
    seeds = list(proper_conversations())
    while True:
        case = seeds.pop() if seeds else mutate_case(rng, rng.choice(corpus), corpus)
        reached, wrong = _trace_case(case)
        found.cases += 1
        if wrong:
            found.wrong.append(f"{wrong}: {format_case(case)}")
        if not reached <= seen:
            seen |= reached
            corpus.append(case)
        if (time.monotonic() >= end and not seeds) or len(found.wrong) >= 10:
            found.steps, found.corpus = len(seen), len(corpus)
            return found


def _trace_case(case: FrameCase) -> tuple[set[CoverageEdge], str]:
    reached, error = trace_edges(lambda: _feed_both_ends(case), _WATCHED)
    return reached, f"{type(error).__name__} {error}" if error else ""


def _feed_both_ends(case: FrameCase) -> None:
    """Feed the frames to both ends, in the clear and with keys, and check their state."""
    for device in (True, False):
        for sealed in (True, False):
            link = blufi.Link(device)
            if sealed:
                link.protect(session.SEALED, Records(session.Ccm, KEYS, device))
            _feed_link(link, case)
    _answer_hellos(case)


def _feed_link(link: blufi.Link, case: FrameCase) -> None:
    for frame in case:
        try:
            message = link.receive(frame)
        except blufi.BlufiError as refused:
            assert 0 <= refused.code <= 13
            if refused.code == blufi.E_DECRYPT:
                return  # that ends a session
        else:
            if message is not None:
                assert len(message.data) <= blufi.MAX_MESSAGE
                _parse_message(message)
        assert len(link._buffer or b"") <= blufi.MAX_MESSAGE and len(link._acks) <= _ACKS
        while (answer := link.transmit()) is not None:
            assert 4 <= len(answer) <= 261
    for _ in range(2):  # the first may complain about an unfinished message
        good = bytes((blufi.GET_VERSION, 0, link._rx_seq, 0))
        try:
            message = link.receive(good)
            assert message is not None and message.type == blufi.GET_VERSION
            return
        except blufi.BlufiError as refused:
            assert refused.code == blufi.E_STATE, refused.code
    raise AssertionError("a good frame is refused afterwards")


def _parse_message(message: blufi.Message) -> None:
    data = message.data
    for reader, refusal in (
        (tlv.decode, tlv.TlvError),
        (wifi_reader.parse_report, blufi.BlufiError),
        (wifi_reader.parse_list, blufi.BlufiError),
        (lambda data: ec1.parse_message(data, ec1.C_HELLO, (ec1.SPAKE2, ec1.ECDH)), ec1.Abort),
        (lambda data: ec1.parse_message(data, ec1.C_FIN, (ec1.SPAKE2,)), ec1.Abort),
    ):
        try:
            reader(data)
        except refusal:
            pass


def _answer_hellos(case: FrameCase) -> None:
    """Answer a client's hello with each frame's content."""
    for frame in case[:2]:
        client = Initiator(NAME.encode(), pop=PIN.encode(), random=fixed_bytes)
        try:
            client._awaits = ec1.S_HELLO  # as after hello(), whose arithmetic is not the point
            client._x = 1
            client.answer(frame[4:])
        except BeaconOtaError:
            pass
