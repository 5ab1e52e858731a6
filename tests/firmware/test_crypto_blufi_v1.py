"""Espressif's first scheme on the beacon, against a phone app written here on ``cryptography``."""

import hashlib

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import given, settings
from hypothesis import strategies as st

from beacon_ota.wire import blufi
from tests.firmware.interpreter import Interpreter, Raised

try:  # where the library keeps CFB depends on its age
    from cryptography.hazmat.decrepit.ciphers.modes import CFB
except ImportError:
    from cryptography.hazmat.primitives.ciphers.modes import CFB

PRIME = int(
    "cf5cf5c38419a724957ff5dd323b9c45c3cdd261eb740f69aa94b8bb1a5c96409153bd76b24222d03274e4725a540609"
    "2e9e82e9135c643cae98132b0d95f7d65347c68afc1e677da90e51bbab5f5cf429c291b4ba39c6b2dc5e8c7231e46aa7"
    "728e87664532cdf547be20c9a3fa8342be6e34371a27c06f7dc0edddd2f86373",
    16,
)
APP = int.from_bytes(hashlib.sha256(b"blufi vector app").digest(), "big")
DEVICE = hashlib.sha256(b"blufi vector dev").digest()

SETUP = """
from crypto import blufi_v1
from wire import blufi

class Error(Exception):
    pass

def begin(number=None):
    global v1, link
    v1 = blufi_v1.Negotiation((lambda n: number) if number else blufi_v1.urandom)
    link = blufi.Link(True)
    link.mtu = 256

def receive(frame):
    try:
        message = link.receive(frame)
        if message is None:
            return None
        if message.type == blufi.NEGOTIATE:
            reply = v1.receive(message.data)
            if reply:
                link.send(blufi.NEGOTIATE, reply)
                link.protect(0, v1.cipher)
        elif message.type == blufi.SET_SECURITY:
            link.protect(message.data[0])
        elif message.type == blufi.GET_VERSION:
            link.send(blufi.VERSION, bytes((1, 3)))
        return message.type, message.data, message.sealed
    except blufi.BlufiError as refused:
        raise Error(refused.code)

def transmit():
    return link.transmit()
"""


class AppCipher:
    tag = 0

    def __init__(self, key: bytes):
        self._key = key

    def _cipher(self, header: bytes) -> Cipher:
        return Cipher(algorithms.AES(self._key), CFB(header[2:3] + bytes(15)))

    def seal(self, header: bytes, data: bytes) -> bytes:
        return self._cipher(header).encryptor().update(data)

    def open(self, header: bytes, data: bytes) -> bytes:
        return self._cipher(header).decryptor().update(data)


@pytest.fixture(scope="module")
def device():
    with Interpreter(SETUP) as interpreter:
        yield interpreter


def params(public: int, *, prime: int = PRIME, g: bytes = b"\2") -> bytes:
    fields = (prime.to_bytes((prime.bit_length() + 7) // 8, "big"), g, public.to_bytes(128, "big"))
    return b"\1" + b"".join(len(f).to_bytes(2, "big") + f for f in fields)


def give(device, link: blufi.Link, type_: int, data: bytes = b"", *, ack=False):
    """Send a message as the app does; return the frames, and what the beacon made of the last."""
    link.send(type_, data, ack)
    frames, result = [], None
    while frame := link.transmit():
        frames.append(frame.hex())
        result = device.ask("receive({})", frame)
    return frames, result


def take(device, link: blufi.Link):
    message, frames = None, []
    while frame := device.ask("transmit()"):
        frames.append(frame.hex())
        message = link.receive(frame)
    assert message
    return frames, message


def key(secret: int) -> bytes:
    return hashlib.md5(secret.to_bytes(128, "big").lstrip(b"\0")).digest()


def agree(device, link: blufi.Link, exponent: int) -> bytes:
    offer = params(pow(2, exponent, PRIME))
    give(device, link, blufi.NEGOTIATE, b"\0" + (len(offer) - 1).to_bytes(2, "big"))
    give(device, link, blufi.NEGOTIATE, offer)
    _, answer = take(device, link)
    return key(pow(int.from_bytes(answer.data, "big"), exponent, PRIME))


def test_recorded_conversation(device):
    """Every frame of a conversation recorded from the app's library and ESP-IDF's device."""
    device.ask("begin({})", DEVICE)
    link = blufi.Link(False)
    link.mtu = 256
    assert give(device, link, blufi.GET_VERSION)[0] == ["1c000000"]
    assert take(device, link)[0] == ["410400020103"]
    offer = params(pow(2, APP, PRIME))
    assert give(device, link, blufi.NEGOTIATE, b"\0\1\7")[0] == ["01000103000107"]
    # The app cuts two bytes later than the frame limit here; content and total are its own.
    whole = b"\x08\x01" + offer[:246]
    first = bytes((0x01, 0x10, 2, 248)) + whole
    assert hashlib.sha256(first).hexdigest().startswith("ba364dd80616f786")
    assert device.ask("receive({})", first) is None
    last = bytes((0x01, 0x00, 3, 18)) + offer[246:]
    assert last.hex() == "01000312fd731b561904a41dfc724185da82d6c5a414"
    assert device.ask("receive({})", last) == (blufi.NEGOTIATE, offer, False)
    frames, answer = take(device, link)
    assert frames[0].startswith("01040180" + "20143bab4f8b")
    assert hashlib.sha256(bytes.fromhex(frames[0])).hexdigest().startswith("a5535693a94c2b0e")
    secret = pow(int.from_bytes(answer.data, "big"), APP, PRIME)
    assert secret.to_bytes(128, "big")[:16].hex() == "20167b8fcad15ca918b347038125236d"
    assert key(secret).hex() == "994e8d6c911cfac4f640d0960f899aef"
    # Our link has sent two frames; the app's two fragments were written by hand.
    link._tx_seq = 4
    link.protect(0x11)
    assert give(device, link, blufi.SET_SECURITY, b"\3")[0] == ["0402040103f1ec"]
    link.protect(0x33, AppCipher(key(secret)))
    frames, opmode = give(device, link, blufi.SET_OPMODE, b"\1", ack=True)
    assert frames == ["080b05010683fb"] and opmode == (blufi.SET_OPMODE, b"\1", True)
    frames, ack = take(device, link)
    assert frames == ["0004020105"] and ack.data == b"\5"
    frames, ssid = give(device, link, blufi.STA_SSID, b"TestNet")
    assert frames == ["09030607cf8a835df220bce5fa"]
    assert ssid == (blufi.STA_SSID, b"TestNet", True)
    frames, password = give(device, link, blufi.STA_PASSWORD, b"correct horse")
    assert frames == ["0d03070d6783e0c2ba6676fffad9235fbe175d"]
    assert password == (blufi.STA_PASSWORD, b"correct horse", True)
    assert device.ask("receive({})", bytes.fromhex("0c000800")) == (blufi.CONNECT, b"", False)
    report = bytes.fromhex("0100000106a1b2c3d4e5f60207546573744e6574")
    device.ask("link.send(blufi.REPORT, {})", report)
    frames, message = take(device, link)
    assert frames == ["3d0703147d7c88a266f2e1c19822bf39d5b4dcc63fe8a0d3f70d"]
    assert message.data == report
    assert device.ask("receive({})", bytes.fromhex("20000900"))[0] == blufi.DISCONNECT_BLE


@settings(max_examples=30, deadline=None)
@given(
    st.one_of(st.binary(max_size=40), st.integers(0, 600).map(bytes)),
    st.sampled_from([23, 64, 185, 256, 517]),
)
def test_sealed_messages_of_any_length(device, data, mtu):
    device.ask("begin()")
    link = blufi.Link(False)
    link.mtu = 256
    cipher = AppCipher(agree(device, link, APP))
    link.protect(0x11)
    give(device, link, blufi.SET_SECURITY, b"\3")
    link.protect(0x33, cipher)
    link.mtu = mtu
    device.ask("setattr(link, 'mtu', {})", mtu)
    assert give(device, link, blufi.CUSTOM, data)[1] == (blufi.CUSTOM, data, True)
    device.ask("link.send(blufi.CUSTOM, {})", data)
    frames, message = take(device, link)
    assert message.data == data
    assert all(len(frame) // 2 <= min(mtu, 255) - 3 for frame in frames)


def test_secret_with_leading_zeros(device):
    """Both sides strip them: one exchange in 256 would fail otherwise."""
    number = int.from_bytes(DEVICE, "big")
    public = pow(2, number, PRIME)
    exponent = 3
    while pow(public, exponent, PRIME) >> 1016:
        exponent += 1
    device.ask("begin({})", DEVICE)
    link = blufi.Link(False)
    link.mtu = 256
    cipher = AppCipher(agree(device, link, exponent))
    link.protect(0x11, cipher)
    link.protect(0x33)
    assert give(device, link, blufi.STA_SSID, b"net")[1] == (blufi.STA_SSID, b"net", True)


def error(device, data: bytes) -> int:
    with pytest.raises(Raised) as raised:
        device.ask("v1.receive({})", data)
    assert raised.value.name == "BlufiError", raised.value
    return int(str(raised.value).split()[-1])


@pytest.mark.parametrize(
    ("announced", "code"),
    [
        (b"", blufi.E_FORMAT),
        (b"\0", blufi.E_FORMAT),
        (b"\0\1", blufi.E_FORMAT),
        (b"\0\0\0", blufi.E_DH_PARAM),
        (b"\0\4\1", blufi.E_DH_PARAM),
        (b"\0\xff\xff", blufi.E_DH_PARAM),
        (b"\5", blufi.E_FORMAT),
        (b"\xec\1\1\x21", blufi.E_FORMAT),
        (params(5), blufi.E_DH_PARAM),  # nothing was announced
    ],
)
def test_refused_announcements(device, announced, code):
    device.ask("begin()")
    assert error(device, announced) == code


GOOD = params(pow(2, APP, PRIME))
MODULUS = PRIME.to_bytes(128, "big")


@pytest.mark.parametrize(
    "offer",
    [
        GOOD[:-1],
        params(0),
        params(1),
        params(PRIME - 1),
        params(PRIME),
        params(5, prime=PRIME + 2),
        params(5, prime=(1 << 2048) - 1),
        params(5, g=b"\3"),
        params(5, g=b""),
        params(5, g=b"\0\2"),
        GOOD.replace(b"\0\x80" + MODULUS, b"\xff\xff" + MODULUS),
        GOOD[:131] + b"\xff\xff" + GOOD[133:],
        GOOD[:134] + b"\1\0" + GOOD[136:],
        b"\1" + bytes(263),
    ],
)
def test_refused_parameters(device, offer):
    device.ask("begin()")
    assert device.ask("v1.receive({})", b"\0\1\7") is None
    assert error(device, offer) == blufi.E_DH_PARAM
    assert error(device, GOOD) == blufi.E_DH_PARAM  # it starts over with a new announcement
    assert device.ask("v1.cipher") is None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.binary(max_size=300), st.binary(max_size=290).map(lambda b: b"\1" + b)))
)
def test_nothing_unnamed_comes_of_any_bytes(device, payloads):
    device.ask("begin()")
    for payload in payloads:
        try:
            device.ask("v1.receive({})", payload)
        except Raised as raised:
            assert raised.name == "BlufiError"


def test_types_that_do_nothing(device):
    device.ask("begin()")
    for kind in (2, 3, 4):
        assert device.ask("v1.receive({})", bytes([kind, 1, 2])) is None
