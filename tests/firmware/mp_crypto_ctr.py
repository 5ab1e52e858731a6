# SP 800-38A F.5.1, and that the stream can be entered anywhere.
from binascii import unhexlify as unhex

from crypto.ctr import Ctr

KEY = unhex("2b7e151628aed2a6abf7158809cf4f3c")
START = unhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
PLAIN = unhex(
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
    "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
)
SECRET = unhex(
    "874d6191b620e3261bef6864990db6ce9806f66b7970fdff8617187bb9fffdff"
    "5ae4df3edbd5d35e5b4f09020db03eab1e031dda2fbe03d1792170a0f3009cee"
)


def test_sp800_38a():
    data = bytearray(PLAIN)
    Ctr(KEY, START).apply(data)
    assert data == SECRET
    Ctr(KEY, START).apply(data)
    assert data == PLAIN


def test_every_offset_and_length():
    ctr = Ctr(KEY, START)
    whole = bytearray(1100)
    ctr.apply(whole)
    for offset in list(range(20)) + [255, 256, 257, 511, 512]:
        for size in list(range(20)) + [240, 255, 256, 257, 272, 513]:
            part = bytearray(size)
            ctr.apply(memoryview(part), offset)
            assert part == whole[offset : offset + size], (offset, size)


# As a download does it: sector after sector, now and then one again, or from further back.
def test_any_order_of_calls():
    ctr = Ctr(KEY, START)
    whole = bytearray(20000)
    ctr.apply(whole)
    at = 0
    for i in range(60):
        size = (1, 16, 255, 256, 257, 1024, 4096)[i % 7]
        part = bytearray(size)
        ctr.apply(part, at)
        assert part == whole[at : at + size], (i, at)
        at = at + size if i % 5 else at // 2
        if at + 4096 > len(whole):
            at = i


def test_only_the_view_is_written():
    data = bytearray(600)
    Ctr(KEY, START).apply(memoryview(data)[100:500])
    assert not any(data[:100]) and not any(data[500:]) and any(data[100:500])


def test_counter_wraps_at_128_bits():
    plain = bytearray(64)
    Ctr(KEY, b"\xff" * 16).apply(plain)
    rest = bytearray(48)
    Ctr(KEY, bytes(16)).apply(rest)
    assert plain[16:] == rest


def test_sizes_are_checked():
    for key, counter in ((bytes(15), bytes(16)), (bytes(32), bytes(16)), (bytes(16), bytes(12))):
        try:
            Ctr(key, counter)
        except ValueError:
            continue
        raise AssertionError((key, counter))
