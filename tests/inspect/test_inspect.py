"""What is said about files: what they are, what is good, what is bad, and no secrets."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beacon_ota.errors import InputError
from beacon_ota.images import appfs, boards, littlefs, nvs, otadata, partitions, synthetic
from beacon_ota.images import flash as flashes
from beacon_ota.images.appfs import AppInfo
from beacon_ota.inspect import inspect
from beacon_ota.trust import KeySet, PublicKey

TABLE = boards.load_board("esp32c3").table
CORE = synthetic.app_image(text=b"MicroPython v1.27.0 on 2025-12-09")


def combined_image():
    layout = partitions.parse_csv(
        "nvs,data,nvs,0x9000,0x6000\nfactory,app,factory,0x10000,0x1F0000\n"
    )
    image = synthetic.bootloader_image().ljust(0x8000, b"\xff") + layout.to_bin()
    return image.ljust(0x10000, b"\xff") + CORE


@pytest.fixture(scope="module")
def keys():
    from cryptography.hazmat.primitives.asymmetric import rsa

    made = rsa.generate_private_key(65537, 3072).public_key()
    return KeySet.of([PublicKey.of(made)])


@pytest.fixture(scope="module")
def good_flash(release_factory, flash_factory, keys):
    built = release_factory("1.2.3", core=CORE, keys=keys.to_json())
    settings = {
        "wifi_ssid": b"hall",
        "wifi_pass": b"correct horse",
        "beacon_id": b"b1",
        "beacon_key": b"\xab" * 32,
        "fleet_key": b"\xcd" * 16,
        "ibeacon": b"\1" * 20,
    }
    return flash_factory(built, settings)


def levels(report):
    return {finding.code: finding.level for finding in report.findings}


FILES = {
    "app image": lambda new, fl: CORE,
    "bootloader": lambda new, fl: synthetic.bootloader_image(),
    "release": lambda new, fl: new("1.2.3"),
    "combined image": lambda new, fl: combined_image(),
    "flash image": lambda new, fl: fl(),
    "partition table": lambda new, fl: TABLE.to_bin(),
    "partition csv": lambda new, fl: TABLE.to_csv().encode(),
    "nvs": lambda new, fl: nvs.generate_partition({"beacon": {"n": 1}}, 0x4000),
    "littlefs": lambda new, fl: littlefs.build_filesystem({"a": b"x"}, 4096),
    "app filesystem": lambda new, fl: (
        appfs.build_app({"main.py": b""}, AppInfo("1.0.0", "esp32c3", "0" * 64)).image
    ),
    "otadata": lambda new, fl: otadata.build_partition(otadata.make_entry(1, otadata.VALID)),
    "blank flash": lambda new, fl: b"\xff" * 8192,
}


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_is_recognised(kind, release_factory, flash_factory):
    report = inspect.inspect_file(FILES[kind](release_factory, flash_factory))
    assert report.kind == kind
    assert report.findings
    json.dumps(report.as_dict())


@pytest.mark.parametrize("data", [b"", b"hello", b"PK\3\4" * 100, b"\0" * 4096, b"\xaa"])
def test_what_nobody_knows_is_refused(data):
    with pytest.raises(InputError) as caught:
        inspect.inspect_file(data)
    assert caught.value.code == "image_unknown"


def test_a_good_flash_image(good_flash, keys):
    report = inspect.inspect_file(good_flash)
    assert report.ok
    assert not {"warn", "bad"} & set(levels(report).values())
    assert report.facts["board"] == "esp32c3" and report.facts["boots"] == "ota_0"
    first = report.facts["otadata"][0]  # type: ignore[index]
    assert (first["seq"], first["slot"], first["state"], first["active"]) == (
        1,
        "ota_0",
        "valid",
        True,
    )
    release = report.facts["apps"][0]["release"]  # type: ignore[index]
    assert release["version"] == "1.2.3" and not release["insecure"]
    assert release["keys"] == {"threshold": 1, "keyids": sorted(keys.keys)}


def test_passwords_and_keys_are_shown_only_when_asked_for(good_flash):
    quiet = json.dumps(inspect.inspect_file(good_flash).as_dict())
    loud = json.dumps(inspect.inspect_file(good_flash, secrets=True).as_dict())
    for secret in ("correct horse", "ab" * 32, "cd" * 16):
        assert secret not in quiet and secret in loud
    assert "hall" in quiet and "hex:" + "01" * 20 in quiet


def test_insecure_is_said_loudly(release_factory):
    report = inspect.inspect_file(release_factory(insecure=True, core=CORE))
    assert levels(report)["insecure"] == "warn"
    assert any("INSECURE" in finding.text for finding in report.findings)
    assert report.ok


def test_a_release_that_trusts_nobody_is_a_dead_end(release_factory):
    report = inspect.inspect_file(release_factory(core=CORE))
    assert levels(report)["keys_missing"] == "bad" and not report.ok


def test_keys_that_are_none(release_factory):
    report = inspect.inspect_file(release_factory(core=CORE, keys=b"{}"))
    assert levels(report)["keys_file"] == "bad"


def test_a_release_too_large_for_its_board(release_factory):
    data = release_factory(core=synthetic.app_image(0x1C0000))
    assert levels(inspect.inspect_file(data))["slot_too_small"] == "bad"
    other = release_factory(device_type="toaster")
    assert levels(inspect.inspect_file(other))["device_type_unknown"] == "warn"


def test_a_core_says_where_it_fits():
    texts = [
        finding.text for finding in inspect.inspect_file(synthetic.app_image(1_659_184)).findings
    ]
    assert "esp32c3: fits, 172,032 bytes for the app" in texts
    assert "esp32c3-1m: too large by 614,400 bytes" in texts


def test_cores_too_old_or_empty():
    old = synthetic.app_image(text=b"MicroPython v1.20.0 on 2023-04-26")
    assert levels(inspect.inspect_file(old))["interpreter"] == "warn"
    assert levels(inspect.inspect_file(synthetic.app_image()))["interpreter"] == "warn"
    assert "interpreter" not in levels(inspect.inspect_file(CORE))


def test_a_damaged_image_is_named():
    broken = bytearray(CORE)
    broken[-1] ^= 1
    report = inspect.inspect_file(broken)
    assert (report.kind, levels(report)["image_sha256"]) == ("app image", "bad")


def test_what_is_left_of_a_download_is_no_alarm(good_flash):
    image = bytearray(good_flash)
    image[0x1D0000:0x1D1000] = CORE[:0x1000]
    report = inspect.inspect_file(image)
    about = [finding for finding in report.findings if finding.text.startswith("ota_1")]
    assert [finding.level for finding in about] == ["warn"]
    assert report.ok and report.facts["boots"] == "ota_0"
    damaged = bytearray(good_flash)
    damaged[0x10000 + 300] ^= 1
    report = inspect.inspect_file(damaged)
    assert not report.ok and report.facts["boots"] is None


def test_a_slot_on_trial(good_flash, release_factory):
    image = bytearray(good_flash)
    built = release_factory("1.2.4", core=CORE)
    image[0x1D0000 : 0x1D0000 + len(built)] = built
    entry = otadata.Entry(2, b"\0".ljust(20, b"\xff"), otadata.NEW, otadata.sequence_crc(2))
    image[0xD000:0xF000] = otadata.build_partition(otadata.make_entry(1, otadata.VALID), entry)
    report = inspect.inspect_file(image)
    assert report.facts["boots"] == "ota_1"
    second = report.facts["otadata"][1]  # type: ignore[index]
    assert (second["state"], second["trial_boots"], second["active"]) == ("new", 1, True)
    assert levels(report)["trial"] == "note"


def test_an_entry_with_a_wrong_crc():
    bad = otadata.Entry(2, state=otadata.VALID, crc=7)
    data = otadata.build_partition(otadata.make_entry(1, otadata.VALID), bad)
    report = inspect.inspect_file(data)
    assert levels(report)["otadata_crc"] == "warn"


def test_a_flash_without_bootloader_does_not_boot(good_flash):
    image = b"\xff" * 0x8000 + good_flash[0x8000:]
    report = inspect.inspect_file(image)
    assert report.kind == "flash image"
    assert levels(report)["not_bootable"] == "bad"


def test_a_table_that_cannot_be_updated():
    report = inspect.inspect_file(b"nvs,data,nvs,0x9000,0x6000\nfactory,app,factory,0x10000,1M\n")
    assert levels(report)["table_ota"] == "warn"


def test_the_official_download(real_core):
    report = inspect.inspect_file(Path(os.environ["BEACON_OTA_CORE"]).read_bytes())
    assert report.ok
    assert report.kind in ("combined image", "app image")


SMALL = flashes.build_flash(
    boards.load_board("esp32c3"),
    synthetic.bootloader_image(),
    synthetic.app_image(4096, version="esp32c3 1.0.0"),
    {"wifi_ssid": b"hall"},
)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_damaged_flash_images_are_always_described(data):
    image = bytearray(SMALL)
    places = (0, 0x8000, 0x9000, 0xD000, 0x10000, 0x390000)
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.sampled_from(places)) + data.draw(st.integers(0, 600))
        image[at] = data.draw(st.integers(0, 255))
    try:
        report = inspect.inspect_file(image)
    except InputError as error:
        assert error.code == "image_unknown"
        return
    json.dumps(report.as_dict())


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([b"", b"\xe9", b"\xaa\x50", b"\0" * 8 + b"littlefs", b"\xfe\xff\xff\xff"]),
    st.binary(max_size=300),
    st.sampled_from([0, 0, 4096, 8192]),
)
def test_arbitrary_files_are_described_or_refused(head, body, size):
    try:
        inspect.inspect_file((head + body).ljust(size, b"\xff"))
    except InputError as error:
        assert error.code == "image_unknown"
