"""nginx out of Debian: what the machine gives for the bytes of a file."""

import shutil
from pathlib import Path

from tests.bench.peers.environment import Missing
from tests.bench.subject import ServerSubject, free_port

_CONFIG = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


def nginx(folder: Path, image: Path) -> ServerSubject:
    """Start it on a folder of files.

    Raises:
        Missing: it is not installed.
    """
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if found is None:
        raise Missing("nginx is not installed (Debian: nginx-light)")
    port = free_port()
    here = folder / "nginx"
    here.mkdir()
    config = here / "nginx.conf"
    config.write_text(_CONFIG.format(folder=here, port=port, root=image.parent))
    image.chmod(0o644)
    command = [found, "-p", str(here), "-c", str(config), "-e", str(here / "error.log")]
    return ServerSubject("nginx", command, f"http://127.0.0.1:{port}", folder / "nginx.log")
