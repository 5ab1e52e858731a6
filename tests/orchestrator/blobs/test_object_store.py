"""Images in another folder, and in an object store: a server on this machine that speaks S3."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests

from beacon_ota.errors import ReachError, UsageError
from beacon_ota.orchestrator.blobs.local import BlobDamaged, LocalBlobStore
from beacon_ota.orchestrator.blobs.object_store import open_blob_store
from tests.orchestrator.world import Local, image, until, upload

EVERYBODY = {"preset": "all-at-once", "window": "00:00-24:00"}
DEADLINE_S = 60.0


class S3:
    """moto's server, in a process of its own."""

    def __init__(self):
        program = Path(sys.executable).with_name("moto_server")
        self._log = tempfile.NamedTemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [str(program), "-H", "127.0.0.1", "-p", "0"],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self.url = until(self._address, deadline_s=DEADLINE_S)

    def _address(self) -> str | None:
        found = re.search(r"http://127\.0\.0\.1:\d+", Path(self._log.name).read_text())
        return None if found is None else found[0]

    def bucket(self, name: str) -> None:
        assert requests.put(f"{self.url}/{name}", timeout=30).ok

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()


@pytest.fixture(scope="module")
def s3():
    pytest.importorskip("obstore")
    if shutil.which("moto_server", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("no S3 server here (PyPI: moto[server])")
    server = S3()
    yield server
    server.stop()


@pytest.fixture
def bucket(s3, monkeypatch, request):
    """A fresh bucket, as a URL, and the environment that leads there."""
    name = "b" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]
    s3.bucket(name)
    for key, value in {
        "AWS_ENDPOINT_URL": s3.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(key, value)
    return f"s3://{name}/images"


@pytest.fixture(params=["folder", "s3"])
def blobs(request, tmp_path) -> LocalBlobStore:
    where = tmp_path / "other"
    url = str(where) if request.param == "folder" else request.getfixturevalue("bucket")
    return open_blob_store(tmp_path / "data", url)


def put(blobs: LocalBlobStore, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    with blobs.open_incoming() as file:
        file.write(data)
        blobs.commit(file, digest)
    return digest


def test_what_is_kept_is_there(blobs):
    data = os.urandom(300_000)
    digest = put(blobs, data)
    assert blobs.has(digest) and blobs.read_verified(digest) == data
    assert put(blobs, data) == digest
    with blobs.open_incoming() as file:
        file.write(data)
        assert blobs.commit(file, digest) is False
    blobs.remove(digest)
    blobs.remove(digest)
    assert not blobs.has(digest)
    with pytest.raises(BlobDamaged) as caught:
        blobs.read_verified(digest)
    assert caught.value.code == "blob_missing"


def test_what_nobody_refers_to_is_swept_when_it_is_old(blobs):
    known, orphan = put(blobs, b"known"), put(blobs, b"orphan")
    assert blobs.sweep({known}, 3600.0) == []
    until(lambda: blobs.sweep({known}, 0.0) == [orphan], deadline_s=DEADLINE_S)
    assert blobs.has(known) and not blobs.has(orphan)


@pytest.mark.parametrize("url", ["ftp://x/y", "http://x/y", "file://elsewhere/y"])
def test_where_images_cannot_be_kept(tmp_path, url):
    with pytest.raises(UsageError) as caught:
        open_blob_store(tmp_path, url)
    assert caught.value.code == "images_url"


def test_file_urls_are_folders(tmp_path):
    digest = put(open_blob_store(tmp_path / "data", f"file://{tmp_path}/a%20b"), b"x")
    assert (tmp_path / "a b" / "blobs" / digest).read_bytes() == b"x"


def test_a_rollout_out_of_a_bucket(bucket, tmp_path):
    with ExitStack() as stack:
        local = stack.enter_context(Local(tmp_path / "data", images=bucket))
        (beacon, late, other) = local.beacons(3)
        firmware = upload(local.admin(), "1.1.0", tmp_path, channel="stable")
        assert not list((tmp_path / "data" / "blobs").iterdir())
        local.admin().create_rollout(firmware["firmware_id"], EVERYBODY)
        beacon.update(beacon.offered())
        local.stop()
        local.start()
        late.connect(local.url)
        assert late.download(late.offered()).body == image("1.1.0")
        # Damage withdraws the release, and the same bytes bring it back.
        local.service.blobs._objects.put(firmware["blob"], b"rot")  # type: ignore[attr-defined]
        local.stop()
        local.start()
        other.connect(local.url)

        def withdrawn() -> bool:
            offer = other.offer()
            return offer is None or other.download(offer).status == 410

        until(withdrawn, deadline_s=DEADLINE_S)
        upload(local.admin(), "1.1.0", tmp_path, channel="stable")
        until(lambda: other.offer(), deadline_s=DEADLINE_S)
        assert other.download(other.offered()).body == image("1.1.0")


def test_a_store_that_does_not_answer_withdraws_nothing(bucket, tmp_path, monkeypatch):
    blobs = open_blob_store(tmp_path / "data", bucket)
    digest = put(blobs, b"x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    away = open_blob_store(tmp_path / "data", bucket)
    for work in (away.read_verified, away.has, away.remove):
        with pytest.raises(ReachError) as caught:
            work(digest)
        assert caught.value.code == "images_unreachable"
    assert blobs.read_verified(digest) == b"x"
