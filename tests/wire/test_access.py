from beacon_ota.wire import access as a
from beacon_ota.wire import access_reader

IDS = [bytes([i, 0, 0, 1]) for i in range(32)]
SECRETS = [bytes([i]) * 16 for i in range(32)]
BLOB = b"".join([IDS[i] + SECRETS[i] for i in range(32)])


def test_messages():
    assert a.parse_message(access_reader.build_request(b"abcd")) == (a.REQUEST, b"abcd")
    assert a.parse_message(access_reader.build_proof(bytes(32))) == (a.PROOF, bytes(16))
    assert a.parse_message(a.build_challenge(bytes(16))) == (a.CHALLENGE, bytes(16))
    assert a.parse_message(b"\x02") == (a.GRANTED, b"") and a.parse_message(b"\x03") == (
        a.REFUSED,
        b"",
    )


def test_everything_fits_the_smallest_packet():
    for message in (
        access_reader.build_request(IDS[0]),
        access_reader.build_proof(bytes(32)),
        a.build_challenge(bytes(16)),
    ):
        assert len(message) <= 20


def test_anything_else_is_nothing():
    for bad in (b"", b"\x00", b"\x01", b"\x04", b"\x01abc", b"\x01abcde", b"\x03" + bytes(16)):
        assert a.parse_message(bad) == (0, b""), bad
    assert a.parse_message(bytes(500)) == (0, b"")


def test_credentials():
    for i in range(32):
        assert a.find_secret(BLOB, IDS[i]) == SECRETS[i]
    assert a.find_secret(BLOB, b"zzzz") == b"" and a.find_secret(b"", IDS[0]) == b""
    # An id is looked for at its place only, and half a credential is none.
    assert a.find_secret(BLOB, SECRETS[5][:4]) == b""
    assert a.find_secret(BLOB[:-1], IDS[31]) == b""


def test_the_key_of_a_door():
    asked = []

    def mac(key, *parts):
        asked.append((key, b"".join(parts)))
        return bytes(range(32))

    assert a.door_key(mac, SECRETS[7], "beacon-1") == bytes(range(16))
    [(key, message)] = asked
    assert key == SECRETS[7] and message == b"beacon-ota access to the door beacon-1"
    # Whatever nonce a stranger asks an old reader to answer: the answer is no door's key.
    assert len(message) > len("beacon-1") + a.NONCE
