# Frames as ESP-IDF's firmware and Espressif's app exchange them, byte for byte, and every refusal.
from binascii import hexlify
from binascii import unhexlify as unhex

from beacon_ota.wire import blufi, blufi_names
from beacon_ota.wire.blufi import BlufiError, Link, crc16


# Turns every byte and adds two, so that sealed frames are told from open ones; needs no crypto.
class Toy:
    tag = 2

    def seal(self, header, data):
        return bytes(b ^ 0x55 for b in data) + bytes((header[2], len(data) & 0xFF))

    def open(self, header, data):
        if len(data) < 2 or data[-2] != header[2] or data[-1] != len(data) - 2:
            return None
        return bytes(b ^ 0x55 for b in data[:-2])


def frames(link):
    out = []
    while True:
        frame = link.transmit()
        if frame is None:
            return out
        out.append(frame)


def feed(link, *hexes):
    message = None
    for text in hexes:
        message = link.receive(unhex(text.replace(" ", "")))
    return message


def taken(link, frame):
    message = link.receive(frame)
    assert message
    return message


def whole(link, *hexes):
    for text in hexes[:-1]:
        assert feed(link, text) is None
    return taken(link, unhex(hexes[-1].replace(" ", "")))


def sent(link):
    frame = link.transmit()
    assert frame
    return frame


def code(link, text):
    try:
        feed(link, text)
    except BlufiError as refused:
        return refused.code
    return None


def hexed(data):
    return hexlify(data).decode()


# A device that has taken `n` frames.
def device(n=0):
    link = Link(True)
    for seq in range(n):
        link.receive(bytes((blufi.GET_VERSION, 0, seq & 0xFF, 0)))
    return link


def test_crc():
    assert crc16(b"123456789") == 0xD64E
    for seq, data, value in (
        (0, b"", 0xE2F0),
        (4, b"\3", 0xECF1),
        (5, b"\1", 0xFB83),
        (6, b"TestNet", 0xFAE5),
        (7, b"correct horse", 0x5D17),
        (255, bytes(range(16)), 0xEF72),
    ):
        covered = bytes((seq, len(data))) + data
        assert crc16(covered) == value
        for cut in range(len(covered)):
            assert crc16(covered[cut:], crc16(covered[:cut])) == value


def test_a_conversation_in_the_clear():
    link = device()
    assert whole(link, "1c 00 00 00").type == blufi.GET_VERSION
    link.send(blufi.VERSION, blufi.PROTOCOL)
    assert frames(link) == [unhex("410400020103")]
    message = whole(link, "08 08 01 01 01")
    assert (message.type, message.data, message.sealed) == (blufi.SET_OPMODE, b"\1", False)
    assert frames(link) == [unhex("0004010101")]
    assert whole(link, "09 00 02 07 54 65 73 74 4e 65 74").data == b"TestNet"
    assert whole(link, "0d 00 03 00").data == b""
    assert whole(link, "0c 00 04 00").type == blufi.CONNECT
    link.send(blufi.ERROR, bytes((blufi.E_SCAN,)))
    assert frames(link) == [unhex("490402010b")]


def test_the_central_does_not_set_the_direction():
    link = Link(False)
    link.send(blufi.GET_VERSION)
    link.send(blufi.SET_OPMODE, b"\1", True)
    assert frames(link) == [unhex("1c000000"), unhex("0808010101")]


def test_checksums():
    link = device(4)
    assert whole(link, "04 02 04 01 03 f1 ec").data == b"\3"
    assert code(link, "08 02 05 01 01 83 fc") == blufi.E_CHECKSUM
    # The counter went on all the same.
    assert code(link, "08 02 05 01 01 83 fb") == blufi.E_SEQUENCE
    assert feed(link, "0c 02 06 00" + hexed(crc16(b"\6\0").to_bytes(2, "little"))) is not None


def test_acknowledgement_with_checksum():
    link = device(8)
    for _ in range(4):
        link.send(blufi.VERSION, b"\1\3")
    frames(link)
    link.protect(0x10)
    feed(link, "08 08 08 01 01")
    assert frames(link) == [unhex("0006040108 9a5d".replace(" ", ""))]


def test_what_is_protected():
    link = Link(True)
    link.mtu = 256
    link.protect(0x33)  # without a cipher nothing can be encrypted
    for type_ in (blufi.CUSTOM, blufi.NEGOTIATE, blufi.ERROR, blufi.ACK, blufi.CONNECT):
        link.send(type_, b"x")
    assert [frame[1] for frame in frames(link)] == [6, 4, 4, 6, 6]
    link.protect(0x33, Toy())
    for type_ in (blufi.CUSTOM, blufi.NEGOTIATE, blufi.ERROR, blufi.ACK, blufi.CONNECT):
        link.send(type_, b"x")
    assert [frame[1] for frame in frames(link)] == [7, 4, 4, 6, 7]
    link.protect(0x22)
    for type_ in (blufi.CUSTOM, blufi.NEGOTIATE, blufi.ERROR, blufi.ACK, blufi.CONNECT):
        link.send(type_, b"x")
    assert [frame[1] for frame in frames(link)] == [5, 4, 4, 4, 5]
    link.protect(0xFF)
    assert link._mode == 0x33


def test_sealed_frames():
    ours, theirs = Link(False), Link(True)
    for link in (ours, theirs):
        link.mtu = 64
        link.protect(0x33, Toy())
    for size in (0, 1, 50, 51, 52, 53, 200, 1024):
        ours.send(blufi.CUSTOM, bytes(i & 0xFF for i in range(size)))
        message = None
        for frame in frames(ours):
            assert len(frame) <= 61
            message = theirs.receive(frame)
        assert message and message.sealed and message.data == bytes(i & 0xFF for i in range(size))
    ours.send(blufi.CONNECT)
    assert taken(theirs, sent(ours)).sealed  # an empty frame can be sealed too
    ours.send(blufi.CONNECT)
    bent = bytearray(sent(ours))
    bent[5] ^= 1
    assert code(theirs, hexed(bent)) == blufi.E_DECRYPT


def test_encrypted_without_a_key():
    link = device()
    assert code(link, "0c 01 00 08 00 00 00 00 00 00 00 00") == blufi.E_DECRYPT
    assert whole(link, "0c 00 01 00").type == blufi.CONNECT


def test_the_seal_of_a_message_is_that_of_its_weakest_frame():
    ours, theirs = Link(False), Link(True)
    ours.mtu = 40
    ours.protect(0x22, Toy())
    theirs.protect(0x22, Toy())
    ours.send(blufi.CUSTOM, bytes(60))
    first = sent(ours)
    theirs.receive(first)
    plain = bytes((blufi.CUSTOM, 0, 1, 60 - 29)) + bytes(60 - 29)
    message = taken(theirs, plain)
    assert message.data == bytes(60) and message.sealed is False


def test_sequence_numbers():
    link = device()
    feed(link, "1c 00 00 00")
    assert code(link, "1c 00 00 00") == blufi.E_SEQUENCE  # again
    assert code(link, "1c 00 02 00") == blufi.E_SEQUENCE  # a gap
    assert whole(link, "1c 00 01 00").type == blufi.GET_VERSION  # still where it was
    link = device(256)
    assert whole(link, "1c 00 00 00").type == blufi.GET_VERSION
    link = Link(True)
    for i in range(300):
        link.send(blufi.VERSION, b"\1\3")
        assert sent(link)[2] == i & 0xFF


def test_lengths():
    for bad in (
        "",
        "1c",
        "1c 00 00",
        "1c 00 00 01",
        "1c 00 00 00 00",
        "1c 02 00 00",
        "1c 02 00 00 f0",
        "1c 02 00 00 f0 e2 00",
        "09 00 00 ff 41",
    ):
        link = device()
        assert code(link, bad) == blufi.E_FORMAT
        assert whole(link, "1c 00 00 00").type == blufi.GET_VERSION  # the counter stood still
    assert whole(device(), "1c e0 00 00").type == blufi.GET_VERSION  # reserved bits
    assert whole(device(), "1c 04 00 00").type == blufi.GET_VERSION  # the direction bit


def test_unknown_kinds_are_passed_over():
    link = device()
    assert feed(link, "02 00 00 00") is None
    assert feed(link, "07 00 01 01 aa") is None
    assert whole(link, "1c 00 02 00").type == blufi.GET_VERSION


def test_negotiation_in_two_fragments():
    payload = bytes(i & 0xFF for i in range(264))
    link = device(2)
    assert feed(link, "01 10 02 f8 08 01" + hexed(payload[:246])) is None
    message = whole(link, "01 00 03 12" + hexed(payload[246:]))
    assert (message.type, message.data) == (blufi.NEGOTIATE, payload)


# Lengths in front of fragments, and who is refused: code by frames.
def test_reassembly():
    a = "01 10 00 04 04 00 61 62"  # "ab" of four bytes
    for rest, wanted in (
        (("01 00 01 02 63 64",), None),
        (("01 10 01 04 ff ff 63 64", "01 00 02 00"), None),  # later totals do not count
        (("01 10 01 03 02 00 63", "01 00 02 01 64"), None),
        (("01 00 01 01 63",), blufi.E_FORMAT),  # too short
        (("01 00 01 03 63 64 65",), blufi.E_FORMAT),  # too long
        (("01 10 01 05 02 00 63 64 65",), blufi.E_FORMAT),
        (("01 10 01 01 00",), blufi.E_FORMAT),  # no room for a total
        (("09 00 01 02 63 64",), blufi.E_STATE),  # it had another type
        (("00 00 01 01 00",), blufi.E_STATE),  # nothing comes in between
        (("01 10 01 02 02 00", "01 10 02 02 02 00", "01 00 03 02 63 64"), None),
    ):
        link = device()
        assert code(link, a) is None
        for text in rest[:-1]:
            assert feed(link, text) is None
        if wanted is None:
            message = whole(link, rest[-1])
            assert (message.type, message.data) == (blufi.NEGOTIATE, b"abcd")
            seq = len(rest) + 1
        else:
            assert code(link, rest[-1]) == wanted, rest
            seq = 2
        # Either way the next message begins from nothing.
        assert whole(link, "09 00" + hexed(bytes((seq,))) + "01 78").data == b"x"
    for first, wanted in (
        ("01 10 00 02 00 00", blufi.E_FORMAT),  # nothing announced
        ("01 10 00 02 01 04", blufi.E_FORMAT),  # 1025 bytes announced
        ("01 10 00 02 ff ff", blufi.E_FORMAT),
        ("01 10 00 00", blufi.E_FORMAT),
        ("01 10 00 01 01", blufi.E_FORMAT),
        ("01 10 00 04 01 00 61 62", blufi.E_FORMAT),  # more than announced at once
    ):
        link = device()
        assert code(link, first) == wanted, first
        assert whole(link, "09 00 01 01 78").data == b"x"
    link = device()
    assert feed(link, "01 10 00 02 04 00") is None  # nothing but the total
    assert code(link, "01 10 01 04 04 00 61 62") == blufi.E_STATE


def test_a_message_byte_by_byte_stays_one_buffer():
    link = device()
    for i in range(1023):
        assert link.receive(bytes((1, 0x10, i & 0xFF, 3, 0, 4, i & 0xFF))) is None
    message = taken(link, bytes((1, 0, 0xFF, 1, 0xFF)))
    assert message.data == bytes(i & 0xFF for i in range(1024))


def test_fragments_that_are_sent():
    # (MTU, cipher) -> content of a fragment and of a last frame
    for mtu, cipher, content, last in (
        (23, None, 12, 14),
        (185, None, 174, 176),
        (256, None, 244, 246),
        (517, None, 244, 246),
        (23, Toy(), 12, 14),
        (256, Toy(), 245, 247),
        (517, Toy(), 251, 253),
    ):
        link = Link(True)
        link.mtu = mtu
        if cipher:
            link.protect(0x22, cipher)
        for size in (last, last + 1, content + last, content + last + 1, 1000):
            sizes = []
            left = size
            while left > last:
                sizes.append(content)
                left -= content
            sizes.append(left)
            link.send(blufi.CUSTOM, bytes(size))
            out = frames(link)
            tag = cipher.tag if cipher else 0
            assert [len(f) - 4 - tag - (2 if f[1] & 0x10 else 0) for f in out] == sizes
            assert all(len(f) <= mtu - 3 and f[3] == len(f) - 4 for f in out)
            assert [f[1] & 0x10 for f in out] == [0x10] * (len(out) - 1) + [0]
    link = Link(True)
    link.mtu = 256
    link.send(blufi.NEGOTIATE, bytes(range(256)) + bytes(8))
    assert sent(link)[:6] == unhex("011400f60801")


def test_acknowledgements_wait_for_the_end_of_a_message():
    link = device()
    link.send(blufi.CUSTOM, bytes(38))
    link.send(blufi.VERSION, b"\1\3")
    types = [sent(link)[0]]
    feed(link, "08 08 00 01 01")
    feed(link, "08 08 01 01 01")
    types += [frame[0] for frame in frames(link)]
    custom = blufi.CUSTOM
    assert types == [custom, custom, custom, blufi.ACK, blufi.ACK, blufi.VERSION]
    feed(link, "08 08 02 01 01")
    link.send(blufi.CUSTOM, bytes(40))
    assert sent(link)[0] == blufi.ACK


def test_every_fragment_is_acknowledged():
    link = device()
    feed(link, "01 18 00 04 04 00 61 62", "01 08 01 02 63 64")
    assert [frame[4] for frame in frames(link)] == [0, 1]


def test_refused_frames_are_not_acknowledged():
    link = device()
    assert code(link, "08 0a 00 01 01 00 00") == blufi.E_CHECKSUM
    assert code(link, "08 09 01 01 01") == blufi.E_DECRYPT
    assert code(link, "08 08 09 01 01") == blufi.E_SEQUENCE
    assert frames(link) == []


def test_queues_are_bounded():
    link = device()
    for seq in range(8):
        feed(link, "08 08" + hexed(bytes((seq,))) + "01 01")
    assert code(link, "08 08 08 01 01") == blufi.E_MEMORY
    assert len(frames(link)) == 8
    for _ in range(8):
        link.send(blufi.VERSION, b"\1\3")
    for arguments in ((blufi.VERSION, b"\1\3"),):
        try:
            link.send(*arguments)
        except ValueError:
            continue
        raise AssertionError("a ninth message")
    try:
        Link(True).send(blufi.CUSTOM, bytes(1025))
    except ValueError:
        return
    raise AssertionError("1025 bytes")


def test_a_frame_that_cannot_be_sealed_takes_no_number():
    class Broken(Toy):
        fails = True

        def seal(self, header, data):
            if self.fails:
                raise OSError(5)
            return Toy.seal(self, header, data)

    link = Link(True)
    cipher = Broken()
    link.protect(0x22, cipher)
    link.send(blufi.VERSION, b"\1\3")
    try:
        link.transmit()
        raise AssertionError("sealed")
    except OSError:
        cipher.fails = False
    assert sent(link)[2] == 0


def test_reset_forgets_everything():
    link = device(3)
    link.mtu = 256
    link.protect(0x33, Toy())
    feed(link, "08 08 03 01 01", "01 10 04 04 09 00 61 62")
    link.send(blufi.VERSION, b"\1\3")
    link.reset()
    assert link.mtu == 23 and frames(link) == []
    assert whole(link, "09 00 00 01 78").data == b"x"
    link.send(blufi.VERSION, b"\1\3")
    assert frames(link) == [unhex("410400020103")]


def test_any_buffer_will_do():
    link = device()
    assert taken(link, bytearray(unhex("090000027879"))).data == b"xy"
    assert taken(link, memoryview(unhex("090001027879"))).data == b"xy"


def test_what_a_stranger_may_send():
    for type_ in range(256):
        open_to_all = type_ in (0x00, 0x01, 0x04, 0x1C, 0x20, 0x49)
        assert blufi.in_clear(type_) is open_to_all


# The names are the constants' own, so neither list can drift from the other.
def test_names_agree_with_the_constants():
    errors = types = 0
    for name in dir(blufi):
        value = getattr(blufi, name)
        if name.startswith("E_"):
            errors += 1
            assert blufi_names.error_name(value) == name[2:].lower()
        elif name.isupper() and name[0] != "_" and name not in ("MTU", "MAX_MESSAGE", "PROTOCOL"):
            types += 1
            assert blufi_names.type_name(value) == name.lower()
    assert errors >= 9 and types >= 15
    assert blufi_names.error_name(13) == "sha256" and blufi_names.error_name(14) == "error_14"
    assert blufi_names.type_name(0xFE) == "type_fe"
    assert blufi_names.reason_name(201) == "no_such_network"
    assert blufi_names.reason_name(1) == "reason_1"
