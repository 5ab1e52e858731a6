"""Uploads against a server process: every refusal by its code, and nothing of it stays."""

import hashlib
import http.client
import json
import os
import socket
import struct
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from beacon_ota.errors import BeaconOtaError, InputError
from beacon_ota.images import appfs, boards, release, synthetic
from beacon_ota.trust import dsse, releases
from beacon_ota.trust.keys import KeySet
from beacon_ota.trust.releases import Terms
from tests.orchestrator.world import DEADLINE_S, Server, app_filesystem, image, until
from tests.trust.lab import Key


@pytest.fixture(scope="module")
def key():
    return Key("release")


@pytest.fixture(scope="module")
def signed_server(tmp_path_factory, key):
    """A server that trusts one key."""
    folder = tmp_path_factory.mktemp("signed")
    (folder / "keys.json").write_bytes(KeySet.of([key.public]).to_json())
    options = f"--keys={folder / 'keys.json'}"
    with Server(folder / "data", options, insecure=False) as server:
        yield server


def files(server: Server) -> set[str]:
    return {file.name for name in ("blobs", "incoming") for file in (server.data / name).iterdir()}


def state(server: Server) -> tuple:
    return files(server), [one["firmware_id"] for one in server.admin().list_firmwares()]


def send(server: Server, data: bytes, version="9.9.9", device_type="esp32c3", **fields) -> dict:
    body = {"device_type": device_type, "version": version, **fields}
    return server.admin().call(
        "POST", "/api/firmwares/upload", data=body, files={"binary": ("x.bin", data)}
    )


def refused(server: Server, data: bytes, **fields) -> BeaconOtaError:
    """Send what must be refused; check that nothing of it stayed."""
    before = state(server)
    with pytest.raises(BeaconOtaError) as caught:
        send(server, data, **fields)
    assert state(server) == before
    return caught.value


def good(version="9.9.9", **options) -> bytes:
    return image(version, **options)


def fixed(data: bytes) -> bytes:
    """Return an image with checksum and SHA-256 made right for a changed core."""
    core_length = len(data) - 4096
    core = bytearray(data[:core_length])
    end = core_length - 32
    parts, at = 0xEF, 24
    for _ in range(core[1]):
        _, size = struct.unpack_from("<II", core, at)
        for byte in core[at + 8 : at + 8 + size]:
            parts ^= byte
        at += 8 + size
    core[end - 1] = parts
    core[end:] = hashlib.sha256(core[:end]).digest()
    return bytes(core) + data[core_length:]


def changed(at: int, value: bytes, **options) -> bytes:
    data = bytearray(good(**options))
    data[at : at + len(value)] = value
    return bytes(data)


def with_app(info: appfs.AppInfo) -> bytes:
    return release.join_core_and_app(synthetic.app_image(8192), app_filesystem(info))


CORE = hashlib.sha256(synthetic.app_image(8192)).hexdigest()
CASES = {
    "image_truncated": lambda: good()[:5000],
    "image_magic": lambda: b"\x7fELF" + good()[4:],
    "image_chip": lambda: fixed(changed(12, struct.pack("<H", 9))),
    "image_segment": lambda: fixed(changed(24, struct.pack("<I", 0x10000000))),
    "image_checksum": lambda: changed(1000, b"\x55\xaa\x12"),
    "image_sha256": lambda: changed(8192 - 1, b"\0"),
    "app_missing": lambda: synthetic.app_image(8192),
    "app_mount": lambda: changed(8192 + 32, bytes(992)),
    "app_version": lambda: with_app(appfs.AppInfo("9.9.8", "esp32c3", CORE)),
    "app_device_type": lambda: with_app(appfs.AppInfo("9.9.9", "esp32c3-1m", CORE)),
    "app_core": lambda: with_app(appfs.AppInfo("9.9.9", "esp32c3", "00" * 32)),
    "app_trailing": lambda: good() + b"x" * 4096,
}


@pytest.mark.parametrize("code", list(CASES))
def test_a_wrong_image_is_refused_by_its_code(server, code):
    error = refused(server, CASES[code]())
    assert isinstance(error, InputError), error
    assert error.code == code, error.message


def test_an_image_without_a_descriptor(server):
    data = good()
    at = data.index(struct.pack("<I", 0xABCD5432))
    assert refused(server, fixed(changed(at, b"\0\0\0\0"))).code == "image_descriptor"


def test_a_whole_flash_image_is_told_by_its_name(server):
    table = boards.load_board("esp32c3").table
    flash = bytearray(b"\xff" * (4 << 20))
    boot = synthetic.bootloader_image()
    flash[: len(boot)] = boot
    rows = table.to_bin()
    flash[0x8000 : 0x8000 + len(rows)] = rows
    data = good()
    flash[0x10000 : 0x10000 + len(data)] = data
    assert refused(server, bytes(flash)).code == "flash_image"
    assert refused(server, bytes(flash[: 1 << 20])).code == "flash_image"


def test_too_large_for_anything_and_too_large_for_the_board(server):
    error = refused(server, b"\xe9" + bytes(3 << 20))
    assert error.code == "image_too_large"
    error = refused(server, good(size=0x1C0000), version="9.9.9")
    assert error.code == "slot_too_small"
    assert error.expected == 0x1C0000 and error.found == 0x1C0000 + 4096


def test_form_fields(server):
    data = good()
    for fields, code in (
        ({"version": "1.2"}, "version_syntax"),
        ({"version": "1.2.3-" + "a" * 80}, "version_syntax"),
        ({"device_type": "esp8266"}, "device_type_unknown"),
        ({"device_type": ""}, "form_field"),
        ({"channel": "nightly"}, "form_field"),
        ({"required": "maybe"}, "form_field"),
        ({"description": "two\nlines"}, "form_field"),
        ({"description": "x" * 501}, "form_field"),
        ({"description": "é" * 251}, "form_field"),
        ({"description": "[" * 9}, "form_field"),
        ({"colour": "red"}, "form_field"),
        ({"manifest": "{}"}, "manifest_signature"),
    ):
        assert refused(server, data, **fields).code == code, fields


def raw_post(server: Server, body: bytes, content_type: str) -> requests.Response:
    return requests.post(
        server.url + "/api/firmwares/upload",
        data=body,
        headers={"Authorization": f"Bearer {server.token}", "Content-Type": content_type},
        timeout=20,
    )


def test_what_is_no_form(server):
    before = state(server)
    form = "multipart/form-data; boundary=xyz"
    for body, content_type, status, code in (
        (b"{}", "application/json", 415, "not_multipart"),
        (b"", "", 415, "not_multipart"),
        (b"--xyz\r\n", "multipart/form-data", 415, "not_multipart"),
        (b"", form, 422, "form_syntax"),
        (b"hello", form, 422, "form_syntax"),
        (b"--xyz\r\n\r\nno header\r\n--xyz--\r\n", form, 422, "form_syntax"),
        (
            b'--xyz\r\nContent-Disposition: form-data; name="version"\r\n\r\n1',
            form,
            422,
            "form_syntax",
        ),
        (b"--xyz\r\nX: " + b"a" * 9000 + b"\r\n\r\n--xyz--\r\n", form, 422, "form_syntax"),
        (
            b"".join(
                b'--xyz\r\nContent-Disposition: form-data; name="f%d"\r\n\r\n1\r\n' % n
                for n in range(40)
            )
            + b"--xyz--\r\n",
            form,
            422,
            "form_field",
        ),
        (
            b'--xyz\r\nContent-Disposition: form-data; name="version"\r\n\r\n1\r\n' * 2
            + b"--xyz--\r\n",
            form,
            422,
            "form_field",
        ),
        (
            b'--xyz\r\nContent-Disposition: form-data; name="version"\r\n\r\n'
            + b"1" * 70_000
            + b"\r\n--xyz--\r\n",
            form,
            422,
            "form_field",
        ),
    ):
        answer = raw_post(server, body, content_type)
        assert (answer.status_code, answer.json()["code"]) == (status, code), body[:60]
    assert state(server) == before


def test_an_upload_that_breaks_off_leaves_nothing(server):
    before = state(server)
    parts = urlsplit(server.url)
    for length in (10, 500, 60_000, 200_000):
        sock = socket.create_connection((parts.hostname, parts.port))
        head = (
            "POST /api/firmwares/upload HTTP/1.1\r\nHost: o\r\nContent-Length: 1000000\r\n"
            f"Authorization: Bearer {server.token}\r\n"
            "Content-Type: multipart/form-data; boundary=xyz\r\n\r\n"
            '--xyz\r\nContent-Disposition: form-data; name="binary"; filename="x"\r\n\r\n'
        )
        sock.sendall(head.encode() + b"\xe9" * length)
        sock.close()
    until(lambda: state(server) == before, what="the halves to be gone")
    assert server.admin().call("GET", "/health")["status"] == "ok"


def test_an_endless_body_is_cut_off(server):
    before = state(server)
    parts = urlsplit(server.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=DEADLINE_S)
    connection.putrequest("POST", "/api/firmwares/upload")
    connection.putheader("Authorization", f"Bearer {server.token}")
    connection.putheader("Content-Type", "multipart/form-data; boundary=xyz")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    head = b'--xyz\r\nContent-Disposition: form-data; name="binary"; filename="x"\r\n\r\n'
    connection.send(b"%x\r\n%s\r\n" % (len(head), head))
    piece = b"%x\r\n%s\r\n" % (65536, bytes(65536))
    for _ in range(40):  # 2.6 MB; the refusal comes while we talk
        connection.send(piece)
    connection.send(b"0\r\n\r\n")
    answer = connection.getresponse()
    assert answer.status == 413 and b"image_too_large" in answer.read()
    assert state(server) == before


def test_a_good_one_is_there_and_again_is_the_same(server):
    data = good("2.0.0")
    first = send(server, data, version="2.0.0", description="Fix nonce expiration bug")
    assert first["state"] == "testing" and first["checksum"] == hashlib.sha256(data).hexdigest()
    assert first["info"]["core_sha256"] == CORE and not first["signed"]
    before = state(server)
    assert send(server, data, version="2.0.0")["firmware_id"] == first["firmware_id"]
    assert state(server) == before
    error = refused(server, good("2.0.0", seed="other"), version="2.0.0")
    assert error.code == "version_taken"


def test_the_same_version_at_once_has_one_winner(server):
    bodies = [good("3.0.0", seed=str(n)) for n in range(4)] * 2
    done, errors = [], []

    def go(data: bytes) -> None:
        try:
            done.append(send(server, data, version="3.0.0"))
        except BeaconOtaError as error:
            errors.append(error.code)

    threads = [threading.Thread(target=go, args=(data,)) for data in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one["firmware_id"] for one in done}) == 1 and len(done) == 2
    assert errors == ["version_taken"] * 6
    assert done[0]["blob"] in files(server) and len(files(server) - {done[0]["blob"]}) == len(
        {one["blob"] for one in server.admin().list_firmwares()} - {done[0]["blob"]}
    )


def test_roles_and_states(server):
    admin = server.admin()
    for version in ("4.0.0", "4.1.0"):
        send(server, good(version), version=version, channel="stable")
    testing = send(server, good("4.2.0"), version="4.2.0")
    listed = {one["version"]: one for one in admin.list_firmwares()}
    assert listed["4.1.0"]["role"] == "current" and listed["4.0.0"]["role"] == "previous"
    assert "role" not in listed["4.2.0"]
    admin.post_firmware_action(testing["firmware_id"], "promote")
    listed = {one["version"]: one for one in admin.list_firmwares(state="stable")}
    assert listed["4.2.0"]["role"] == "current" and listed["4.1.0"]["role"] == "previous"
    with pytest.raises(BeaconOtaError, match="cannot be promoted"):
        admin.post_firmware_action(testing["firmware_id"], "promote")
    admin.post_firmware_action(testing["firmware_id"], "deprecate", "crashes")
    listed = {one["version"]: one for one in admin.list_firmwares()}
    assert listed["4.2.0"]["state"] == "deprecated" and listed["4.1.0"]["role"] == "current"


def test_an_administrator_can_download(server):
    data = good("5.0.0")
    one = send(server, data, version="5.0.0")
    answer = server.admin().request("GET", f"/firmwares/{one['firmware_id']}/download")
    assert answer.content == data and answer.headers["etag"] == f'"{one["blob"]}"'
    part = server.admin().request(
        "GET", f"/firmwares/{one['firmware_id']}/download", headers={"Range": "bytes=10-19"}
    )
    assert part.status_code == 206 and part.content == data[10:20]


# ---- signatures ----


def manifest(data: bytes, key: Key, expires_s: int = 86_400, **changes) -> str:
    now = int(time.time())
    terms = Terms(now, now + expires_s, **changes)
    return dsse.sign_payload(releases.describe_release(data, terms)[0].payload(), [key])


def test_signed_releases(signed_server, key):
    keys = KeySet.of([key.public]).to_json()
    data = good("1.0.0", keys=keys)
    text = manifest(data, key)
    assert refused(signed_server, data, version="1.0.0").code == "manifest_missing"
    error = refused(signed_server, data, version="1.0.0", manifest=text[:-1])
    assert error.code == "manifest_signature"
    other = manifest(data, Key("other"))
    error = refused(signed_server, data, version="1.0.0", manifest=other)
    assert error.code == "manifest_signature"
    error = refused(signed_server, good("1.0.1", keys=keys), version="1.0.1", manifest=text)
    assert error.code == "manifest_mismatch"
    done = send(signed_server, data, version="1.0.0", manifest=text)
    assert done["signed"] and done["expires_at"] and done["info"]["signed"]
    shown = signed_server.admin().find_firmware(done["firmware_id"])
    assert shown["manifest"]["payloadType"].startswith("application/vnd.beacon-ota")


def test_a_release_signed_again_keeps_its_bytes(signed_server, key):
    data = good("1.1.0", keys=KeySet.of([key.public]).to_json())
    done = send(signed_server, data, version="1.1.0", manifest=manifest(data, key))
    text = manifest(data, key, 2 * 86_400)
    again = send(signed_server, data, version="1.1.0", manifest=text)
    assert again["firmware_id"] == done["firmware_id"]
    assert again["expires_at"] > done["expires_at"]


def test_encrypted_releases_are_served_as_they_came(signed_server, key):
    data = good("1.2.0", keys=KeySet.of([key.public]).to_json())
    now = int(time.time())
    described, sealed = releases.describe_release(data, Terms(now, now + 9999), fleet_key=bytes(16))
    assert sealed is not None
    text = dsse.sign_payload(described.payload(), [key])
    done = send(signed_server, sealed, version="1.2.0", manifest=text)
    assert done["checksum"] == hashlib.sha256(data).hexdigest()
    assert done["blob"] == hashlib.sha256(sealed).hexdigest() and done["info"]["encrypted"]
    admin = signed_server.admin()
    answer = admin.request("GET", f"/firmwares/{done['firmware_id']}/download")
    assert answer.content == sealed and answer.headers["etag"] == f'"{done["blob"]}"'


# ---- what happens to the files ----


def test_after_a_kill_no_half_of_an_upload_is_there(tmp_path):
    data = [good(f"1.0.{n}", size=400_000, seed=str(n)) for n in range(8)]
    with Server(tmp_path / "data") as server:
        done: list[dict] = []

        def go(number: int) -> None:
            try:
                done.append(send(server, data[number], version=f"1.0.{number}"))
            except (BeaconOtaError, OSError):
                pass

        for _ in range(3):
            done.clear()
            threads = [threading.Thread(target=go, args=(n,)) for n in range(8)]
            for thread in threads:
                thread.start()
            until(lambda: len(done) >= 2, what="two uploads")
            server.kill()
            for thread in threads:
                thread.join()
            server.start()
            known = server.admin().list_firmwares()
            stored = {one["firmware_id"] for one in known}
            assert {one["firmware_id"] for one in done} <= stored
            # What was stored without its row is whole, and kept for a while.
            assert files(server) >= {one["blob"] for one in known}
            for blob in files(server):
                content = (server.data / "blobs" / blob).read_bytes()
                assert hashlib.sha256(content).hexdigest() == blob
            for one in known:
                path = server.data / "blobs" / one["blob"]
                assert hashlib.sha256(path.read_bytes()).hexdigest() == one["checksum"]
        assert server.admin().verify_audit()["entries"] > 0


def test_damaged_bytes_withdraw_a_release_until_they_are_uploaded_again(tmp_path):
    data = {how: good("1.0.0", seed=how) for how in ("changed", "cut", "gone", "untouched")}
    with Server(tmp_path / "data") as server:
        ids = {}
        for number, how in enumerate(data):
            data[how] = good(f"1.0.{number}", seed=how)
            ids[how] = send(server, data[how], version=f"1.0.{number}", channel="stable")
        server.stop()

        def path(how: str) -> Path:
            return server.data / "blobs" / ids[how]["blob"]

        path("changed").write_bytes(data["changed"][:-1] + b"?")
        os.truncate(path("cut"), 5000)
        path("gone").unlink()
        server.start()
        admin = server.admin()
        for number, how in enumerate(("changed", "cut", "gone")):
            one = ids[how]["firmware_id"]
            until(
                lambda one=one: admin.find_firmware(one)["damaged_at"], what=f"{how} to be noticed"
            )
            with pytest.raises(BeaconOtaError) as caught:
                admin.create_rollout(one)
            assert caught.value.code == "firmware_state"
            with pytest.raises(BeaconOtaError) as caught:
                admin.call("GET", f"/firmwares/{one}/download")
            assert caught.value.code == "firmware_damaged"
            again = send(server, data[how], version=f"1.0.{number}")
            assert again["firmware_id"] == one and again["damaged_at"] is None
            assert admin.request("GET", f"/firmwares/{one}/download").content == data[how]
        assert admin.find_firmware(ids["untouched"]["firmware_id"])["damaged_at"] is None


def test_what_arrives_after_its_token_was_revoked_is_no_release(server, admin):
    """Somebody who has to leave may have an upload under way, and hours to finish it."""
    made = admin.create_token("leaver with an upload", "operator")
    before = state(server)
    fields = {"device_type": "esp32c3", "version": "6.6.6", "channel": "stable"}
    request = requests.Request(
        "POST",
        f"{server.url}/api/firmwares/upload",
        data=fields,
        files={"binary": ("x.bin", image("6.6.6"))},
        headers={"Authorization": f"Bearer {made['token']}"},
    ).prepare()
    assert isinstance(request.body, bytes)
    parts = urlsplit(server.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=DEADLINE_S)
    connection.putrequest("POST", request.path_url)
    for name, value in request.headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    connection.send(request.body[:-100])
    until(lambda: files(server) - before[0], what="it is being taken")
    admin.revoke_token(made["id"])
    connection.send(request.body[-100:])
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["code"]) == (401, "token_wrong")
    until(lambda: state(server) == before)
