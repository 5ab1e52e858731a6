# The record layer with a cipher that writes down what it is given.
from beacon_ota.wire.records import Records

KEYS = bytes(range(50))


class Log:
    tag = 8

    def __init__(self, key):
        self.key = key
        self.good = True

    def seal(self, nonce, aad, data):
        return self.key + b"/" + nonce + b"/" + aad + b"/" + data

    def open(self, nonce, aad, data):
        return self.seal(nonce, aad, data) if self.good else None


def opened(records):
    data = records.open(b"head", b"")
    assert data is not None
    return data


def test_each_direction_has_its_own_key_and_prefix():
    client, device = Records(Log, KEYS, False), Records(Log, KEYS, True)
    c2d = KEYS[:16] + b"/" + KEYS[32:41] + b"\0\0\0\0/head/"
    d2c = KEYS[16:32] + b"/" + KEYS[41:] + b"\0\0\0\0/head/"
    assert client.seal(b"head", b"x") == c2d + b"x" == device.open(b"head", b"x")
    assert device.seal(b"head", b"x") == d2c + b"x" == client.open(b"head", b"x")


def test_counters_count_frames_of_one_direction():
    records = Records(Log, KEYS, False)
    for i in range(300):
        assert records.seal(b"head", b"")[26:30] == i.to_bytes(4, "big")
    assert opened(records)[26:30] == bytes(4)


def test_nothing_opens_after_a_failure():
    log = Log(b"")
    records = Records(lambda key: log, KEYS, False)
    opened(records)
    log.good = False
    assert records.open(b"head", b"") is None
    assert records.open(b"head", b"") is None
    assert records.seal(b"head", b"")  # what we still have to say can be said


def test_counters_never_come_round():
    records = Records(Log, KEYS, False)
    records._sent = records._received = (1 << 32) - 1
    assert records.seal(b"head", b"")[26:30] == b"\xff\xff\xff\xff"
    assert opened(records)[26:30] == b"\xff\xff\xff\xff"
    try:
        records.seal(b"head", b"")
    except ValueError:
        assert records.open(b"head", b"") is None
        return
    raise AssertionError("sealed with a used nonce")
