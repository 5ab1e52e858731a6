"""Real proxies in front of an orchestrator, with the very configurations of docs/deploy."""

import contextlib
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.orchestrator.server.test_tls import certificate
from tests.orchestrator.world import until

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"
KINDS = ["nginx", "caddy"]
_NGINX = """
daemon off;
{user}
pid {folder}/pid;
error_log {folder}/error.log;
worker_processes 1;
events {{ worker_connections 256; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    gzip on;
    gzip_proxied any;
    gzip_types *;
    gzip_min_length 1;
    etag on;
    {site}
}}
"""
_CADDY = """
{{
	admin off
	auto_https off
	storage file_system {folder}/storage
}}
{site}
"""


@dataclass(frozen=True)
class Proxy:
    """One that runs: its address over TLS, that for beacons, and what verifies the first."""

    url: str
    plain: str
    ca: Path
    kind: str
    folder: Path

    def log(self) -> str:
        return "\n".join(p.read_text() for p in sorted(self.folder.glob("*.log")))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _configure(kind: str, folder: Path, upstream: int, tls: int, plain: int, files: list) -> Path:
    """Return a file with the configuration of the page, for these ports and this certificate."""
    text = (DEPLOY / ("nginx.conf" if kind == "nginx" else "Caddyfile")).read_text()
    assert "127.0.0.1:8080" in text
    text = text.replace("127.0.0.1:8080", f"127.0.0.1:{upstream}")
    if kind == "nginx":
        text = re.sub(r"^ *listen \[::\].*\n", "", text, flags=re.M)
        text = text.replace("listen 443 ssl", f"listen 127.0.0.1:{tls} ssl")
        text = text.replace("listen 80;", f"listen 127.0.0.1:{plain};")
        for number, name in enumerate(("fullchain", "privkey")):
            text, found = re.subn(rf"\S+/{name}\.pem", str(files[number]), text)
            assert found == 1
        text = text.replace("server_name ota.example.org;", "server_name 127.0.0.1;")
        site = _NGINX.format(folder=folder, site=text, user="user root;")
        file = folder / "nginx.conf"
    else:
        here = "\n\tbind 127.0.0.1"  # beacons come by any name
        text = text.replace("http://ota.example.org {", f"http://:{plain} {{{here}")
        text = re.sub(
            r"^ota\.example\.org \{",
            f"https://127.0.0.1:{tls} {{{here}\n\tencode gzip\n\ttls {files[0]} {files[1]}",
            text,
            flags=re.M,
        )
        site = _CADDY.format(folder=folder, site=text)
        file = folder / "Caddyfile"
    assert "ota.example.org" not in re.sub(r"#.*", "", site)
    file.write_text(site)
    return file


def _configure_path(folder: Path, location: str, tls: int, plain: int, files: list) -> Path:
    """Return a file with nginx's configuration of a server that has a location of others."""
    site = f"""
    server {{
        listen 127.0.0.1:{tls} ssl;
        listen 127.0.0.1:{plain};
        ssl_certificate {files[0]};
        ssl_certificate_key {files[1]};
        {location}
        location / {{ return 404; }}
    }}
    """
    file = folder / "nginx.conf"
    file.write_text(_NGINX.format(folder=folder, site=site, user="user root;"))
    return file


@contextlib.contextmanager
def proxy(kind: str, folder: Path, upstream: int, location: str = "") -> Iterator[Proxy]:
    """Run one in front of what listens on a port.

    Args:
        location: nginx's, in place of the page's configuration; the rest of its server answers 404.
    """
    program = shutil.which(kind) or shutil.which(kind, path="/usr/sbin")
    if program is None:
        pytest.skip(f"no {kind} here (Debian: apt-get install {kind})")
    folder.mkdir()
    files = certificate(folder, "proxy")
    tls, plain = free_port(), free_port()
    if location:
        file = _configure_path(folder, location, tls, plain, files)
    else:
        file = _configure(kind, folder, upstream, tls, plain, files)
    if kind == "nginx":
        command = [program, "-p", str(folder), "-c", str(file), "-e", str(folder / "error.log")]
    else:
        command = [program, "run", "--adapter", "caddyfile", "--config", str(file)]
    with (folder / "out.log").open("w") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env={"HOME": str(folder), "XDG_DATA_HOME": str(folder), "PATH": "/usr/bin:/bin"},
        )
        found = Proxy(
            f"https://127.0.0.1:{tls}", f"http://127.0.0.1:{plain}", files[0], kind, folder
        )
        try:

            def listens() -> bool:
                assert process.poll() is None, found.log()
                with socket.socket() as probe:
                    return probe.connect_ex(("127.0.0.1", plain)) == 0

            until(listens, what="the proxy listens")
            yield found
        finally:
            process.terminate()
            process.wait(60)
