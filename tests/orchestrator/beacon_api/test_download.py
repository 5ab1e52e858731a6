"""A beacon's calls for the image and the block index: authenticated, sealed, whole or in part."""

import base64
import hashlib
import json
import time
from typing import Any

import pytest

from beacon_ota.errors import BeaconOtaError
from beacon_ota.images import blocks
from beacon_ota.trust import encrypt, releases
from beacon_ota.trust.dsse import sign_payload
from beacon_ota.trust.keys import KeySet
from tests.orchestrator.world import Local, TestBeacon, image, until
from tests.trust.lab import Key

EVERYBODY = {"preset": "all-at-once", "window": "00:00-24:00"}
FLEET_KEY = bytes(range(16))


@pytest.fixture(scope="module")
def key():
    return Key("release")


@pytest.fixture
def signed(tmp_path, key):
    """An orchestrator that trusts one key, so that it takes encrypted releases."""
    with Local(tmp_path / "signed", **trusting(key)) as local:
        local.clock.at = time.time()
        yield local


def trusting(key: Key) -> dict[str, Any]:
    return {"trusted": KeySet.of([key.public]), "insecure": False}


def encrypted(key: Key, version: str = "1.1.0") -> tuple[bytes, bytes, str]:
    """Return the plain image, the ciphertext, and the manifest as a form's field."""
    plain = image(version, keys=KeySet.of([key.public]).to_json())
    now = int(time.time())
    terms = releases.Terms(now - 60, now + 1_000_000)
    manifest, sealed = releases.describe_release(plain, terms, fleet_key=FLEET_KEY)
    assert sealed is not None
    return plain, sealed, sign_payload(manifest.payload(), [key])


def send(local: Local, data: bytes, version: str = "1.1.0", **fields: str) -> dict:
    form = {"device_type": "esp32c3", "version": version, "channel": "stable", **fields}
    return local.admin().call(
        "POST", "/api/firmwares/upload", data=form, files={"binary": ("x.bin", data)}
    )


def offered(local: Local, made: dict) -> tuple[TestBeacon, dict]:
    (beacon,) = local.beacons(1)
    local.admin().create_rollout(made["firmware_id"], EVERYBODY)
    return beacon, beacon.offered()


def blocks_url(offer: dict) -> str:
    return offer["download_url"].replace("/download?", "/blocks?")


def test_the_index_is_sealed_whole_and_in_part(local):
    data = image("1.1.0")
    index = blocks.hash_sectors(data)
    beacon, offer = offered(local, send(local, data))
    etag = f'"{hashlib.sha256(index).hexdigest()}"'
    answer = beacon.call("GET", blocks_url(offer))  # checks the seal
    assert (answer.status, answer.body, answer.headers["etag"]) == (200, index, etag)
    assert answer.headers["content-type"] == "application/octet-stream"
    for sent, status, body in (
        ({"Range": "bytes=8-15"}, 206, index[8:16]),
        ({"Range": "bytes=16-", "If-Range": etag}, 206, index[16:]),
        ({"Range": "bytes=16-", "If-Range": '"another"'}, 200, index),
        ({"Range": f"bytes={len(index)}-"}, 416, b""),
    ):
        answer = beacon.call("GET", blocks_url(offer), headers=sent)
        assert (answer.status, answer.body) == (status, body)
    counted = local.service.counts
    assert dict(counted.block_indexes) == {"200": 2, "206": 2, "416": 1}
    assert not counted.downloads


def test_the_index_of_a_stranger_or_of_no_attempt(local):
    beacon, offer = offered(local, send(local, image("1.1.0")))
    (other,) = local.beacons(1, "other")
    for who, url in (
        (other, blocks_url(offer)),
        (beacon, blocks_url(offer).partition("?")[0]),
        (beacon, f"/firmwares/{'0' * 24}/blocks?attempt={offer['attempt_id']}"),
    ):
        answer = who.call("GET", url)
        assert (answer.status, answer.json["code"]) == (409, "attempt_over")
    beacon.key = bytes(32)
    answer = beacon.call("GET", blocks_url(offer), check=False)
    assert answer.status == 401 and "x-beacon-mac" not in answer.headers


def test_the_index_takes_the_offer_and_a_halt_ends_it(local):
    made = send(local, image("1.1.0"))
    beacon, offer = offered(local, made)
    assert beacon.call("GET", blocks_url(offer)).status == 200
    rollout = local.admin().call("GET", "/api/rollouts")["rollouts"][0]["rollout_id"]
    attempts = local.admin().call("GET", f"/api/rollouts/{rollout}/attempts")["attempts"]
    assert attempts[0]["taken_at"]
    local.admin().call("POST", f"/api/rollouts/{rollout}/halt", json={"reason": "a test"})
    answer = beacon.call("GET", blocks_url(offer))
    assert (answer.status, answer.json["code"]) == (410, "rollout_halted")


def test_a_damaged_image_that_was_never_indexed_is_withdrawn(local):
    made = send(local, image("1.1.0"))
    beacon, offer = offered(local, made)
    local.service.blobs.path(made["blob"]).write_bytes(b"damaged")
    local.service.blobs.evict(made["blob"])
    answer = beacon.call("GET", blocks_url(offer))
    assert (answer.status, answer.json["code"]) == (410, "firmware_damaged")
    assert local.admin().find_firmware(made["firmware_id"])["damaged_at"]


def test_an_administrator_reads_it_with_a_token(local):
    data = image("1.1.0")
    made = send(local, data)
    assert made["blocks"] is True
    assert local.admin().download_blocks(made) == blocks.hash_sectors(data)


def test_an_encrypted_release_serves_the_index_that_came_with_it(signed, key):
    plain, sealed, manifest = encrypted(key)
    index = blocks.hash_sectors(plain)
    made = send(signed, sealed, manifest=manifest, blocks=base64.b64encode(index).decode())
    assert made["blocks"] is True
    beacon, offer = offered(signed, made)
    assert beacon.call("GET", blocks_url(offer)).body == index
    assert encrypt.crypt_image(beacon.download(offer).body, FLEET_KEY, made["checksum"]) == plain


def test_without_one_the_beacon_is_told_so_and_is_not_refused(signed, key):
    plain, sealed, manifest = encrypted(key)
    made = send(signed, sealed, manifest=manifest)
    assert made["blocks"] is False
    beacon, offer = offered(signed, made)
    for _ in range(3):
        answer = beacon.call("GET", blocks_url(offer))  # checks the seal
        assert (answer.status, answer.json["code"]) == (404, "blocks_missing")
    shown = signed.admin().call("GET", f"/api/beacons/{beacon.id}")
    assert not shown["refusals"] and shown["refused_code"] is None
    assert beacon.download(offer).status == 200
    index = base64.b64encode(blocks.hash_sectors(plain)).decode()
    assert send(signed, sealed, manifest=manifest, blocks=index)["blocks"] is True
    assert beacon.call("GET", blocks_url(offer)).body == blocks.hash_sectors(plain)


def test_an_index_that_cannot_be_right_is_refused(signed, key):
    plain, sealed, manifest = encrypted(key)
    index = blocks.hash_sectors(plain)
    for text, code in (
        ("%%%", "blocks_syntax"),
        ("é" * 8, "blocks_syntax"),
        (base64.b64encode(index[8:]).decode(), "blocks_size"),
        (base64.b64encode(index + bytes(8)).decode(), "blocks_size"),
        ("A" * (1 << 16) + "AAAA", "form_field"),
    ):
        with pytest.raises(BeaconOtaError) as caught:
            send(signed, sealed, manifest=manifest, blocks=text)
        assert caught.value.code == code
    assert signed.admin().list_firmwares() == []


def test_the_index_of_a_plain_image_is_compared_and_not_kept(local):
    data = image("1.1.0")
    index = blocks.hash_sectors(data)
    wrong = base64.b64encode(bytes(8) + index[8:]).decode()
    with pytest.raises(BeaconOtaError) as caught:
        send(local, data, blocks=wrong)
    assert caught.value.code == "blocks_mismatch"
    made = send(local, data, blocks=base64.b64encode(index).decode())
    assert local.service.fleet.releases[made["firmware_id"]].row["blocks"] is None
    assert json.dumps(made).count("blocks") == 1


@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "encrypted"])
def test_a_mirror_serves_the_index_of_its_primary(signed, key, tmp_path, sealed):
    plain, ciphertext, manifest = encrypted(key)
    if sealed:
        index = base64.b64encode(blocks.hash_sectors(plain)).decode()
        made = send(signed, ciphertext, manifest=manifest, blocks=index)
    else:
        now = int(time.time())
        terms = releases.Terms(now - 60, now + 1_000_000)
        manifest = sign_payload(releases.describe_release(plain, terms)[0].payload(), [key])
        made = send(signed, plain, manifest=manifest)
    signed.admin().create_site("a", tz="UTC")
    (beacon,) = signed.beacons(1, site="a")
    signed.admin().create_rollout(made["firmware_id"], EVERYBODY)
    token = signed.admin().create_mirror("lan-a", "a")["token"]
    more = {"upstream": signed.url, "upstream_token": token, "clock": signed.clock}
    with Local(tmp_path / "mirror", **trusting(key), **more) as mirror:
        until(lambda: mirror.service.fleet.rollouts, what="the mirror to have the rollout")
        beacon.connect(mirror.url)
        answer = beacon.call("GET", blocks_url(beacon.offered()))
    assert (answer.status, answer.body) == (200, blocks.hash_sectors(plain))
