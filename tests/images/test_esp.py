"""ESP images: what is accepted, what each kind of damage is called, and ESP-IDF's verdict."""

import struct
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beacon_ota.images import esp, partitions, synthetic
from beacon_ota.images.esp import ImageError

TABLE = partitions.parse_csv("nvs,data,nvs,0x9000,0x4000\nfactory,app,factory,0x10000,1M\n")


def refuse(data, code, **kwargs):
    with pytest.raises(ImageError) as caught:
        esp.parse_app_image(data, **kwargs)
    assert caught.value.code == code, caught.value
    return caught.value


def seal(image):
    """Give a changed image the checksum and hash that fit it."""
    image = bytearray(image)
    at, checksum = 24, 0xEF
    for _ in range(image[1]):
        (length,) = struct.unpack_from("<I", image, at + 4)
        checksum ^= esp.xor_bytes(image[at + 8 : at + 8 + length])
        at += 8 + length
    end = (at + 16) & ~15
    image[end - 1] = checksum
    image[end : end + 32] = sha256(image[:end]).digest()
    return bytes(image)


def changed(image, offset, form, *values):
    image = bytearray(image)
    struct.pack_into(form, image, offset, *values)
    return bytes(image)


def test_an_app_image_tells_what_it_is():
    data = synthetic.app_image(8192, version="1.2.3", project="probe")
    image = esp.parse_app_image(data)
    assert image.length == 8192
    assert image.sha256 == data[-32:].hex() == sha256(data[:-32]).hexdigest()
    assert image.checksum == data[-33]
    assert [segment.memory for segment in image.segments] == ["DROM", "DRAM", "IROM", "IRAM"]
    assert (image.descriptor.version, image.descriptor.project) == ("1.2.3", "probe")
    assert image.descriptor.idf == "v5.5.1"
    assert image.descriptor.elf_sha256 == data[0xB0 : 0xB0 + 32].hex()
    assert (image.flash_mode, image.flash_size) == ("DIO", 4 << 20)
    assert (image.min_revision, image.max_revision) == (3, 199)
    assert image.interpreter is None


def test_the_interpreters_version_is_found():
    banner = b"MicroPython v1.27.0-preview.4 on 2025-12-09; somewhere"
    assert esp.parse_app_image(synthetic.app_image(text=banner)).interpreter == "v1.27.0-preview.4"


def test_an_image_may_lie_anywhere_and_be_followed_by_anything():
    data = synthetic.app_image()
    flash = b"\xff" * 0x10000 + data + b"\0" * 5000
    assert esp.parse_app_image(flash, 0x10000) == esp.parse_app_image(data)
    assert esp.parse_app_image(memoryview(flash), 0x10000, 0x20000) == esp.parse_app_image(data)
    assert esp.image_length(flash, 0x10000) == len(data)


def test_the_same_arguments_give_the_same_bytes():
    assert synthetic.app_image(9000, seed="a") == synthetic.app_image(9000, seed="a")
    assert synthetic.app_image(9000, seed="a") != synthetic.app_image(9000, seed="b")
    assert synthetic.bootloader_image() == synthetic.bootloader_image()


@pytest.mark.parametrize("size", [2048, 4096, 4100, 65536, 200_000])
def test_synthetic_sizes(size):
    data = synthetic.app_image(size)
    assert len(data) == size // 16 * 16
    assert esp.parse_app_image(data).length == len(data)


@pytest.mark.parametrize("size, code", [(1, 0), (2, 1), (4, 2), (8, 3), (16, 4), (128, 7)])
def test_the_flash_size_in_a_header_can_be_changed(size, code):
    loader = synthetic.bootloader_image()
    changed = esp.with_flash_size(loader, size << 20)
    assert changed[3] >> 4 == code and changed[3] & 15 == loader[3] & 15
    assert esp.parse_bootloader(changed).flash_size == size << 20
    assert (changed == loader) == (size == 4)


def test_an_impossible_flash_size():
    for size in (0, 3 << 20, 256 << 20, 1000):
        with pytest.raises(ImageError) as caught:
            esp.with_flash_size(synthetic.bootloader_image(), size)
        assert caught.value.code == "image_flash_size"


def test_a_bootloader_is_an_image_but_no_app():
    data = synthetic.bootloader_image()
    assert esp.verify_bootable(data, 0, 0x8000) == len(data)
    loader = esp.parse_bootloader(data)
    assert loader.length == len(data) < partitions.TABLE_OFFSET
    assert loader.idf == "v5.5.1"
    refuse(data, "image_descriptor")
    with pytest.raises(ImageError) as caught:
        esp.parse_bootloader(synthetic.app_image())
    assert caught.value.code == "image_segment"


@pytest.mark.parametrize(
    "break_it, code",
    [
        (lambda d: b"", "image_truncated"),
        (lambda d: d[:20], "image_truncated"),
        (lambda d: d[:28], "image_truncated"),
        (lambda d: d[:5000], "image_truncated"),
        (lambda d: d[:-1], "image_truncated"),
        (lambda d: b"\0" + d[1:], "image_magic"),
        (lambda d: b"PK\3\4" * 20, "image_magic"),
        (lambda d: changed(d, 12, "<H", 0), "image_chip"),
        (lambda d: changed(d, 12, "<H", 9), "image_chip"),
        (lambda d: changed(d, 1, "<B", 0), "image_segment"),
        (lambda d: changed(d, 1, "<B", 17), "image_segment"),
        (lambda d: changed(d, 28, "<I", 1001), "image_segment"),
        (lambda d: changed(d, 28, "<I", 1 << 24), "image_segment"),
        (lambda d: changed(d, 24, "<I", 0x20000020), "image_segment"),
        (lambda d: changed(d, 24, "<I", 0x3FCDFF00), "image_segment"),
        (lambda d: changed(d, 24, "<I", 0x3C000024), "image_segment"),
        (lambda d: changed(d, 40, "<B", d[40] ^ 1), "image_checksum"),
        (lambda d: changed(d, len(d) - 33, "<B", d[-33] ^ 1), "image_checksum"),
        (lambda d: changed(d, len(d) - 1, "<B", d[-1] ^ 1), "image_sha256"),
        (lambda d: changed(d, 4, "<I", 0x40380010), "image_sha256"),
        (lambda d: changed(d, 23, "<B", 0), "image_sha256"),
        (lambda d: seal(changed(d, 32, "<I", 0x12345678)), "image_descriptor"),
        (lambda d: seal(changed(d, 24, "<I", 0x42000020)), "image_descriptor"),
    ],
)
def test_each_damage_has_its_name(break_it, code):
    refuse(break_it(synthetic.app_image()), code)


def test_another_chips_image_is_named():
    assert refuse(changed(synthetic.app_image(), 12, "<H", 9), "image_chip").found == "ESP32-S3"


def test_a_slots_end_truncates():
    refuse(synthetic.app_image(8192), "image_truncated", limit=8000)


def test_a_whole_flash_image_is_recognised():
    flash = bytearray(b"\xff" * 0x20000)
    flash[: len(synthetic.bootloader_image())] = synthetic.bootloader_image()
    flash[0x8000:0x8C00] = TABLE.to_bin()
    flash[0x10000 : 0x10000 + 8192] = synthetic.app_image()
    refuse(flash, "flash_image")
    assert esp.parse_app_image(flash, 0x10000).length == 8192
    flash[:0x8000] = b"\xff" * 0x8000  # other chips keep their bootloader elsewhere
    refuse(flash, "flash_image")


def test_an_app_with_a_tables_magic_inside_is_an_app():
    image = bytearray(synthetic.app_image(0xA000))
    image[0x8000:0x8002] = b"\xaa\x50"
    assert esp.parse_app_image(seal(image)).length == 0xA000


def model(flash, off, size, chip_rev=3, blk_rev=0):
    """ESP-IDF 5.5's check of a slot before it becomes the boot slot, step by step."""
    if size > 0x1000000:
        return None
    head = struct.unpack_from("<BBBBIB3sHBHH4sB", flash, off)
    magic, n, cid, mn, mx, ha = head[0], head[1], head[7], head[9], head[10], head[12]
    if magic != 0xE9 or cid != 5 or chip_rev < mn:
        return None
    if mx not in (0, 65535) and chip_rev > mx:
        return None
    if n > 16:
        return None
    p, ck = off + 24, 0xEF
    for i in range(n):
        addr, ln = struct.unpack_from("<II", flash, p)
        p += 8
        if ln & 3 or ln >= 0x1000000:
            return None
        drom = 0x3C000000 <= addr < 0x3C800000
        irom = 0x42000000 <= addr < 0x42800000
        if (drom or irom) and p % 65536 != addr % 65536:
            return None
        if i == 0 and ln and off != 0:
            lo, hi = struct.unpack_from("<HH", flash, p + 176)
            if lo not in (0, 65535) and blk_rev < lo:
                return None
            if hi not in (0, 65535) and blk_rev > hi:
                return None
        for b in flash[p : p + ln]:
            ck ^= b
        p += ln
    tot = (p - off + 1 + 15) & ~15
    if flash[off + tot - 1] != ck:
        return None
    if ha:
        if tot + 32 > size:
            return None
        if sha256(flash[off : off + tot]).digest() != flash[off + tot : off + tot + 32]:
            return None
        tot += 32
    return tot if tot <= size else None


def verdict(flash, off, size, **revisions):
    """The model's answer, with reads behind the end of flash as a refusal."""
    try:
        return model(flash, off, size, **revisions)
    except (struct.error, IndexError):
        return None


@st.composite
def images(draw):
    """Images of random segments with random flaws in any field, mostly sealed correctly."""
    count = draw(st.integers(0, 4))
    out = bytearray(
        struct.pack(
            "<BBBBIB3sHBHH4sB",
            draw(st.sampled_from([0xE9] * 12 + [0xEA])),
            draw(st.sampled_from([count] * 12 + [17, count + 1])),
            2,
            0x2F,
            0x40380000,
            0xEE,
            b"",
            draw(st.sampled_from([5] * 12 + [9])),
            3,
            draw(st.sampled_from([0, 3, 3, 3, 4])),
            draw(st.sampled_from([0, 199, 199, 65535, 2])),
            b"",
            draw(st.sampled_from([0, 1, 1, 1, 7])),
        )
    )
    for _ in range(count):
        address = draw(
            st.sampled_from(
                [0, 0x3FC90000, 0x40380000, 0x50000000, 0x3C000000, 0x42000000, 0x60000000]
            )
        )
        if address in (0x3C000000, 0x42000000):
            address += (len(out) + 8) % 65536 + draw(st.sampled_from([0] * 8 + [4]))
        length = draw(st.integers(0, 80)) * 4 + draw(st.sampled_from([0] * 20 + [2]))
        fill = draw(st.sampled_from([b"\0", b"\xff", b"\x01\0", b"\xc7\0"]))
        out += struct.pack("<II", address, length) + (fill * length)[:length]
    if draw(st.booleans()) or count == 0:
        data = bytearray(out + bytes(64))
        return seal(data)[: len(out) + 64] if data[1] <= count else bytes(data)
    return bytes(out) + draw(st.binary(max_size=80))


@settings(max_examples=400, deadline=None)
@given(images(), st.integers(0, 3), st.integers(0, 1500), st.data())
def test_bootable_agrees_with_esp_idf(image, page, room, data):
    offset = page * 0x1000 if page == 3 else page * 0x10000
    flash = bytearray(b"\xff" * offset + image + b"\xff" * data.draw(st.sampled_from([0, 600])))
    if data.draw(st.booleans()) and len(image) > 1:
        at = offset + data.draw(st.integers(0, len(image) - 1))
        flash[at] ^= 1 << data.draw(st.integers(0, 7))
    for size in (room, len(image), 0x1C0000, 0x1000001):
        expected = verdict(flash, offset, size)
        assert esp.verify_bootable(flash, offset, size) == expected
        loaded = esp.verify_bootable(flash, offset, size, load=True)
        assert loaded in (expected, None)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_valid_image_with_any_flaw(data):
    image = bytearray(synthetic.app_image(2048))
    for _ in range(data.draw(st.integers(0, 2))):
        image[data.draw(st.integers(0, len(image) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    sealed = data.draw(st.booleans())
    if sealed and image[1] == 4:
        try:
            image = bytearray(seal(image))
        except (struct.error, IndexError):
            pass
    expected = verdict(image, 0, 0x10000)
    assert esp.verify_bootable(image, 0, 0x10000) == expected
    try:
        parsed = esp.parse_app_image(image)
    except ImageError:
        return
    if parsed.min_revision <= 3 and (parsed.max_revision or 3) >= 3:
        assert expected in (parsed.length, None)  # None: the eFuse block revisions
    assert esp.image_length(image) == parsed.length


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_arbitrary_bytes_are_refused_by_name(data, as_image):
    if as_image:
        data = b"\xe9" + data
    for function in (esp.parse_app_image, esp.parse_bootloader, esp.image_length):
        with pytest.raises(ImageError):
            function(data)
    assert esp.verify_bootable(data, 0, 0x10000) == verdict(data, 0, 0x10000)


def test_the_bootloader_also_wants_segments_in_ram():
    image = seal(changed(synthetic.app_image(), 24 + 8, "<I", esp.DESCRIPTOR_MAGIC))
    at = 24 + 8 + esp.parse_app_image(image).segments[0].length
    odd = seal(changed(image, at, "<I", 0x60000000))
    assert esp.verify_bootable(odd, 0, 0x10000) == len(odd)
    assert esp.verify_bootable(odd, 0, 0x10000, load=True) is None
    refuse(odd, "image_segment")


def test_revisions_outside_the_images_range_do_not_boot():
    image = synthetic.app_image()
    assert esp.verify_bootable(image, 0, 0x10000, chip_rev=2) is None
    assert esp.verify_bootable(image, 0, 0x10000, chip_rev=200) is None
    flash = bytes(0x10000) + image
    assert esp.verify_bootable(flash, 0x10000, 0x10000, block_rev=199) == len(image)
    assert esp.verify_bootable(flash, 0x10000, 0x10000, block_rev=200) is None


@given(st.binary(max_size=300))
def test_xor_is_that_of_all_bytes(data):
    expected = 0
    for byte in data:
        expected ^= byte
    assert esp.xor_bytes(data) == expected


def test_a_real_core(real_core):
    image = real_core.image
    assert image.interpreter and image.interpreter.startswith("v1.")
    assert len(real_core.data) == image.length
    assert esp.verify_bootable(real_core.data, 0, 0x1C0000, load=True) == image.length
    assert model(real_core.data, 0, 0x1C0000) == image.length
    assert esp.verify_bootable(real_core.bootloader, 0, 0x8000) == len(real_core.bootloader)
    assert real_core.bootloader_image and real_core.bootloader_image.idf.startswith("v5.")


def check_with_esptool(data):
    from esptool.bin_image import ESP32C3FirmwareImage, LoadFirmwareImage

    theirs = LoadFirmwareImage("esp32c3", data)
    assert isinstance(theirs, ESP32C3FirmwareImage)
    ours = esp.parse_app_image(data)
    assert theirs.entrypoint == ours.entry
    assert theirs.checksum == ours.checksum == theirs.calculate_checksum()
    assert theirs.stored_digest == theirs.calc_digest == bytes.fromhex(ours.sha256)
    assert (theirs.data_length or 0) + 32 == ours.length
    assert [(s.addr, len(s.data)) for s in theirs.segments] == [
        (s.address, s.length) for s in ours.segments
    ]


def test_esptool_agrees(small_core):
    check_with_esptool(small_core)
    check_with_esptool(synthetic.app_image(100_000, version="1.0.0"))


def test_esptool_agrees_on_a_real_core(real_core):
    check_with_esptool(real_core.data)
