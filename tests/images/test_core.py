"""Where a core comes from: named, or fetched from a server that may serve anything."""

import hashlib
import os
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from beacon_ota.errors import BeaconOtaError, InputError, ReachError, UsageError
from beacon_ota.images import core, synthetic
from beacon_ota.images.core import StockCore

DATA = synthetic.app_image(200_000)


class Server(ThreadingHTTPServer):
    """Counts what it is asked."""

    hits = 0


class Handler(BaseHTTPRequestHandler):
    """Serves DATA; the path says how it goes wrong."""

    server: Server

    def do_GET(self):
        self.server.hits += 1
        if self.path.startswith("/missing"):
            self.send_error(404)
            return
        body = DATA[:-1] + b"!" if self.path.startswith("/other") else DATA
        body += b"more" if self.path.startswith("/long") else b""
        short = self.path.startswith(("/short", "/cut"))
        self.send_response(200)
        if not self.path.startswith("/short"):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:100_000] if short else body)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server():
    with Server(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.01,))
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def stock(server, path="good"):
    url = f"http://127.0.0.1:{server.server_address[1]}/{path}/core.bin"
    return StockCore("v1.2.3", url, len(DATA), hashlib.sha256(DATA).hexdigest())


def test_a_core_is_fetched_once(server, tmp_path):
    seen = []
    folder = tmp_path / "a" / "b"
    file = core.fetch_core(stock(server), folder, lambda done, total: seen.append((done, total)))
    assert file.read_bytes() == DATA and file.name == "core.bin"
    assert seen[-1] == (len(DATA), len(DATA)) and len(seen) > 1
    core.fetch_core(stock(server), folder)
    assert server.hits == 1
    core.fetch_core(stock(server), folder, again=True)
    assert server.hits == 2
    file.write_bytes(b"damaged")
    assert core.fetch_core(stock(server), folder).read_bytes() == DATA


@pytest.mark.parametrize(
    "path, kind, code",
    [
        ("missing", ReachError, "core_download"),
        ("cut", ReachError, "core_download"),
        ("short", InputError, "core_size"),
        ("long", InputError, "core_size"),
        ("other", InputError, "core_sha256"),
    ],
)
def test_what_is_not_the_core_is_not_kept(server, tmp_path, path, kind, code):
    with pytest.raises(kind) as caught:
        core.fetch_core(stock(server, path), tmp_path)
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_a_bad_download_does_not_replace_a_good_file(server, tmp_path):
    core.fetch_core(stock(server), tmp_path)
    with pytest.raises(InputError):
        core.fetch_core(stock(server, "other"), tmp_path, again=True)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [DATA]


def test_another_server_is_asked(server, tmp_path):
    absent = replace(stock(server), url="http://127.0.0.1:1/core.bin")
    file = core.fetch_core(absent, tmp_path, url=stock(server).url)
    assert file.read_bytes() == DATA and server.hits == 1


def test_nobody_there(server, tmp_path):
    closed = replace(stock(server), url="http://127.0.0.1:1/core.bin")
    with pytest.raises(ReachError) as caught:
        core.fetch_core(closed, tmp_path)
    assert str(caught.value.message).endswith("core.bin: the server cannot be reached")
    assert "--core" in str(caught.value.expected)
    assert list(tmp_path.iterdir()) == []


def test_who_is_asked_first(tmp_path, monkeypatch):
    monkeypatch.setattr(core, "cache_folder", lambda: tmp_path)
    monkeypatch.delenv(core.ENV, raising=False)
    with pytest.raises(UsageError) as caught:
        core.locate_core()
    assert caught.value.code == "core_missing" and "core fetch" in caught.value.message
    (tmp_path / core.STOCK.name).write_bytes(DATA)
    assert core.locate_core() == (tmp_path / core.STOCK.name, "cache")
    monkeypatch.setenv(core.ENV, str(tmp_path / "mine.bin"))
    assert core.locate_core() == (tmp_path / "mine.bin", "environment")
    assert core.locate_core(tmp_path / "given.bin") == (tmp_path / "given.bin", "option")


def test_loading(tmp_path):
    file = tmp_path / "core.bin"
    file.write_bytes(DATA)
    assert core.read_core(file).data == DATA
    file.write_bytes(b"nothing of the kind, but long enough to be one")
    for path, code in ((file, "image_magic"), (tmp_path / "none", "file_missing")):
        with pytest.raises(BeaconOtaError) as caught:
            core.read_core(path)
        assert caught.value.code == code


def test_the_pinned_core_is_the_real_one(real_core):
    data = Path(os.environ[core.ENV]).read_bytes()
    if real_core.image.interpreter == core.STOCK.version:
        assert (len(data), hashlib.sha256(data).hexdigest()) == (core.STOCK.size, core.STOCK.sha256)
