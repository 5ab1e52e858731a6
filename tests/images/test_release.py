"""Release images: core and app as one file, and everything that can be wrong with one."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beacon_ota.errors import InputError
from beacon_ota.images import appfs, esp, littlefs, release, synthetic
from beacon_ota.images.appfs import AppInfo

CORE = synthetic.app_image(10_000)
SHA = hashlib.sha256(CORE).hexdigest()
APP = appfs.build_app({"main.py": b"x = 1\n"}, AppInfo("1.2.3", "esp32c3", SHA, 7, True)).image
IMAGE = release.join_core_and_app(CORE, APP)


def refuse(data, code, **kwargs):
    with pytest.raises(InputError) as caught:
        release.parse_release(data, **kwargs)
    assert caught.value.code == code, caught.value
    return caught.value


def test_a_release_taken_apart(release_factory, small_core):
    data = release_factory("2.0.0-rc.1", keys=b"{}", built_at=5)
    found = release.parse_release(data)
    assert (found.info.version, found.info.device_type) == ("2.0.0-rc.1", "esp32c3")
    assert (found.info.built_at, found.info.insecure) == (5, False)
    assert found.core == esp.parse_app_image(small_core)
    assert found.core_sha256 == hashlib.sha256(small_core).hexdigest()
    assert found.checksum == hashlib.sha256(data).hexdigest()
    assert found.size == len(data)
    assert found.app_offset == release.app_offset(len(small_core)) == 16384
    assert 16384 + found.app_size == len(data)
    assert set(found.files) == {"main.mpy", "app.json", "keys.json"}
    assert found.payload == len(found.files["main.mpy"])
    assert not found.frozen


def test_the_gap_before_the_app_is_ff():
    assert len(CORE) % 4096
    gap = IMAGE[len(CORE) : release.app_offset(len(CORE))]
    assert gap and set(gap) == {0xFF}


def test_the_bootloader_takes_a_release_as_it_is():
    flash = bytes(0x10000) + IMAGE
    assert esp.verify_bootable(flash, 0x10000, 0x1C0000, load=True) == len(CORE)


def test_the_same_parts_give_the_same_bytes(release_factory):
    assert release_factory("1.0.0") == release_factory("1.0.0")
    assert release_factory("1.0.0") != release_factory("1.0.1")


def test_in_a_slot_anything_may_follow():
    flash = bytes(0x10000) + IMAGE + b"older bytes"
    assert release.parse_release(flash, 0x10000, 0x20000) == release.parse_release(IMAGE)


def test_a_frozen_app_is_a_release_without_filesystem():
    core = synthetic.app_image(9000, version="esp32c3 3.2.1")
    found = release.parse_release(core)
    assert found.frozen and found.files == {} and found.app_size == 0
    assert found.info == AppInfo("3.2.1", "esp32c3", hashlib.sha256(core).hexdigest())
    assert found.size == len(core)
    refuse(core + b"\xff", "app_trailing")
    assert release.parse_release(core + b"\xff" * 9000, 0, 18_000).size == len(core)


def test_a_frozen_app_may_have_a_filesystem_for_its_keys(release_factory):
    core = synthetic.app_image(9000, version="esp32c3 3.2.1")
    app = appfs.build_app(
        {}, AppInfo("3.2.1", "esp32c3", hashlib.sha256(core).hexdigest()), keys=b"{}"
    )
    found = release.parse_release(release.join_core_and_app(core, app.image))
    assert set(found.files) == {"app.json", "keys.json"} and not found.frozen
    assert found.info.version == "3.2.1"
    stock = synthetic.app_image(9000)
    info = AppInfo("3.2.1", "esp32c3", hashlib.sha256(stock).hexdigest())
    refuse(release.join_core_and_app(stock, appfs.build_app({}, info).image), "app_main")


@pytest.mark.parametrize(
    "data, code",
    [
        (lambda: b"", "image_truncated"),
        (lambda: CORE[:-1], "image_truncated"),
        (lambda: CORE, "app_missing"),
        (lambda: IMAGE[: len(CORE) + 100], "app_missing"),
        (lambda: CORE.ljust(12288, b"\xff") + bytes(4096), "app_missing"),
        (lambda: synthetic.app_image(version="esp32c3 1.2"), "app_version"),
        (lambda: synthetic.app_image(version="ESP 1.2.3"), "app_device_type"),
        (lambda: IMAGE[:-1], "app_mount"),
        (lambda: IMAGE[:-4000], "app_mount"),
        (lambda: IMAGE[:-4096], "app_missing"),
        (lambda: IMAGE + b"\xff", "app_trailing"),
        (lambda: CORE + b"\0" + IMAGE[len(CORE) + 1 :], "app_mount"),
        (
            lambda: release.join_core_and_app(synthetic.app_image(10_000, seed="other"), APP),
            "app_core",
        ),
        (
            lambda: release.join_core_and_app(
                CORE, littlefs.build_filesystem({"main.mpy": b""}, 512)
            ),
            "app_json",
        ),
        (lambda: release.join_core_and_app(b"\xe8" + CORE[1:], APP), "image_magic"),
    ],
)
def test_what_is_no_release(data, code):
    refuse(data(), code)


def test_a_filesystem_that_stage_0_would_not_find():
    image = bytearray(IMAGE)
    image[release.app_offset(len(CORE)) + 24] ^= 1  # littlefs itself would use the second block
    refuse(image, "app_mount")


def test_a_flash_image_is_named(flash_factory):
    refuse(flash_factory(), "flash_image")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_is_found_wherever_it_is(data):
    image = bytearray(IMAGE)
    at = data.draw(st.integers(0, len(image) - 1))
    image[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = release.parse_release(image)
    except InputError:
        return
    # What the filesystem does not use may change unseen here; the checksum sees it.
    assert at >= release.app_offset(len(CORE))
    assert found.checksum != hashlib.sha256(IMAGE).hexdigest()


def test_a_real_core_leaves_room_for_an_app(real_core, release_factory):
    data = release_factory("1.0.0", core=real_core.data)
    found = release.parse_release(data)
    assert found.core.interpreter == real_core.image.interpreter
    assert found.app_offset == 1_662_976 or found.core.interpreter != "v1.27.0"


def test_the_same_code_under_a_higher_version():
    made = release.renumber_release(IMAGE, "1.3.0", built_at=9, keys=b"{}")
    found, before = release.parse_release(made), release.parse_release(IMAGE)
    assert found.info == AppInfo("1.3.0", "esp32c3", SHA, 9, True)
    assert found.core == before.core and found.core_sha256 == SHA
    assert found.files["main.mpy"] == before.files["main.mpy"] and found.files["keys.json"] == b"{}"
    assert release.parse_release(release.renumber_release(IMAGE, "1.3.0")).info.built_at == 7
    for version, code in (
        ("1.2.3", "version_not_higher"),
        ("1.2.3-rc.1", "version_not_higher"),
        ("1.2.3+build", "version_not_higher"),
        ("1.3", "app_version"),
    ):
        with pytest.raises(InputError) as caught:
            release.renumber_release(IMAGE, version)
        assert caught.value.code == code
    with pytest.raises(InputError) as caught:
        release.renumber_release(IMAGE[:-1], "1.3.0")
    assert caught.value.code == "app_mount"
    alone = synthetic.app_image(10_000, version="esp32c3 1.2.3")
    with pytest.raises(InputError) as caught:
        release.renumber_release(alone, "1.3.0")
    assert caught.value.code == "app_frozen"
