"""Links under any frames at all: named refusals, bounded memory, and what is sent arrives."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from beacon_ota.wire import blufi
from beacon_ota.wire.records import Records


class Ccm:
    """An authenticated cipher in shape only: the tag is a checksum over everything."""

    def __init__(self, key: bytes):
        self._key = key

    def _tag(self, nonce: bytes, aad: bytes, data: bytes) -> bytes:
        text = self._key + nonce + aad + data
        return (sum((i + 1) * b for i, b in enumerate(text)) % (1 << 64)).to_bytes(8, "big")

    def seal(self, nonce: bytes, aad: bytes, data: bytes) -> bytes:
        return bytes(b ^ 0xAA for b in data) + self._tag(nonce, aad, data)

    def open(self, nonce: bytes, aad: bytes, sealed: bytes) -> bytes | None:
        data = bytes(b ^ 0xAA for b in sealed[:-8])
        return data if len(sealed) >= 8 and self._tag(nonce, aad, data) == sealed[-8:] else None


KEYS = bytes(range(50))

headers = st.tuples(
    st.sampled_from([0x00, 0x01, 0x02, 0x04, 0x09, 0x1C, 0x4D, 0xFF]),
    st.one_of(st.integers(0, 255), st.sampled_from([0x00, 0x10, 0x18, 0x08])),
)


@given(st.lists(st.binary(max_size=300)))
def test_any_bytes(frames):
    link = blufi.Link(True)
    for frame in frames:
        try:
            link.receive(frame)
        except blufi.BlufiError as refused:
            assert 0 <= refused.code <= 13


class Hostile(RuleBasedStateMachine):
    """Frames with right lengths and numbers, so that they come further than any bytes do."""

    def __init__(self):
        super().__init__()
        self.link = blufi.Link(True)
        self.seq = 0
        self.messages = 0

    @rule(header=headers, data=st.binary(max_size=255), advance=st.integers(0, 1))
    def frame(self, header, data, advance):
        type_, fc = header
        body = bytes((type_, fc, self.seq, len(data))) + data
        if fc & 0x02:
            body += blufi.crc16(data, blufi.crc16(body[2:4])).to_bytes(2, "little")
        self.give(body)

    @rule(total=st.integers(0, 1100), data=st.binary(max_size=253), last=st.booleans())
    def fragment(self, total, data, last):
        content = data if last else total.to_bytes(2, "little") + data
        self.give(bytes((0x4D, 0 if last else 0x10, self.seq, len(content))) + content)

    def give(self, body):
        try:
            message = self.link.receive(body)
        except blufi.BlufiError as refused:
            assert 0 <= refused.code <= 13
            if refused.code == blufi.E_SEQUENCE or (
                refused.code == blufi.E_FORMAT and self.link._rx_seq == self.seq
            ):
                return
        else:
            if message is not None:
                assert len(message.data) <= blufi.MAX_MESSAGE
                assert not message.sealed
        self.seq = self.seq + 1 & 0xFF

    @rule()
    def answer(self):
        while (frame := self.link.transmit()) is not None:
            assert len(frame) <= 20

    @invariant()
    def bounded(self):
        assert self.link._rx_seq == self.seq
        assert len(self.link._buffer or b"") <= blufi.MAX_MESSAGE
        assert len(self.link._acks) <= 8


TestHostile = Hostile.TestCase
TestHostile.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0x09, 0x0D, 0x4D, 0x0C, 0x01]), st.binary(max_size=1024)),
        max_size=6,
    ),
    st.sampled_from([23, 24, 31, 64, 185, 256, 263, 517]),
    st.sampled_from(["clear", "checked", "sealed"]),
    st.booleans(),
)
def test_what_is_sent_arrives(messages, mtu, how, ack):
    ours, theirs = blufi.Link(False), blufi.Link(True)
    ours.mtu = theirs.mtu = mtu
    if how == "checked":
        ours.protect(0x11)
    elif how == "sealed":
        ours.protect(0x22, Records(Ccm, KEYS, False))
        theirs.protect(0x22, Records(Ccm, KEYS, True))
    for type_, data in messages:
        ours.send(type_, data, ack)
        got, wanted = None, 0
        while (frame := ours.transmit()) is not None:
            assert got is None and len(frame) <= mtu - 3
            got = theirs.receive(frame)
            wanted += ack
            answer = theirs.transmit()
            assert (answer is not None) is ack
            if answer:
                message = ours.receive(answer)
                assert message and message.type == blufi.ACK and message.data == frame[2:3]
        assert got and (got.type, got.data) == (type_, data)
        assert got.sealed is (how == "sealed" and type_ != 0x01)


@given(st.binary(max_size=40), st.data())
def test_sealed_frames_cannot_be_bent_moved_or_repeated(data, draw):
    ours, theirs = blufi.Link(False), blufi.Link(True)
    for link, device in ((ours, False), (theirs, True)):
        link.mtu = 256
        link.protect(0x22, Records(Ccm, KEYS, device))
    ours.send(blufi.CUSTOM, data)
    frame = bytearray(ours.transmit() or b"")
    how = draw.draw(st.sampled_from(["header", "repeat", "turn"]))
    if how == "header":
        frame[0] ^= draw.draw(st.sampled_from([0x04, 0x40, 0x44]))
    elif how == "repeat":
        assert theirs.receive(bytes(frame))
        frame[2] += 1
    else:
        theirs = blufi.Link(False)
        theirs.protect(0x22, Records(Ccm, KEYS, False))
    try:
        theirs.receive(bytes(frame))
        raise AssertionError("taken")
    except blufi.BlufiError as refused:
        assert refused.code == blufi.E_DECRYPT
    # Nothing opens after that, not even the right frame.
    ours.send(blufi.CUSTOM, data)
    following = bytearray(ours.transmit() or b"")
    following[2] = theirs._rx_seq
    try:
        theirs.receive(bytes(following))
        raise AssertionError("taken")
    except blufi.BlufiError as refused:
        assert refused.code == blufi.E_DECRYPT
