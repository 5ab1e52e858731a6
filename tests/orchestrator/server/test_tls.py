"""Certificates: refused by name, warned of, exchanged while running; silent handshakes."""

import datetime
import ipaddress
import signal
import socket
import ssl
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from beacon_ota.client import Client
from tests.orchestrator.postgres import cluster
from tests.orchestrator.raw import Raw
from tests.orchestrator.world import COMMAND, DEADLINE_S, Server, until


def certificate(folder: Path, name: str, days: float = 90, password: bytes = b"") -> list[Path]:
    """Write a certificate for 127.0.0.1 and its key; return the files."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    end = now + datetime.timedelta(days=days)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, end) - datetime.timedelta(days=1))
        .not_valid_after(end)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = [folder / f"{name}.cert.pem", folder / f"{name}.key.pem"]
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    hidden = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    files[1].write_bytes(key.private_bytes(pem, form, hidden))
    return files


def options(files: list[Path]) -> list[str]:
    return [f"--tls-cert={files[0]}", f"--tls-key={files[1]}"]


def serial(server: Server) -> int:
    """Return the serial number of the certificate that a new connection gets."""
    parts = urlsplit(server.url)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    sock = socket.create_connection((parts.hostname, parts.port), DEADLINE_S)
    with context.wrap_socket(sock) as secured:
        found = secured.getpeercert(binary_form=True)
        assert found is not None
        return x509.load_der_x509_certificate(found).serial_number


def refused(tmp_path: Path, *given: str) -> str:
    """Return what a start says that fails by name."""
    done = subprocess.run(
        [str(COMMAND), "serve", f"--data={tmp_path / 'data'}", "--port=0", "--insecure", *given],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_files_that_are_of_no_use_are_named(tmp_path):
    good, other = certificate(tmp_path, "good"), certificate(tmp_path, "other")
    locked = certificate(tmp_path, "locked", password=b"secret")
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    torn = tmp_path / "torn.pem"
    torn.write_bytes(good[0].read_bytes()[:300])
    for files, code in (
        ([tmp_path / "none.pem", good[1]], "tls_unreadable"),
        ([good[0], tmp_path / "none.pem"], "tls_unreadable"),
        ([tmp_path, good[1]], "tls_unreadable"),
        ([text, good[1]], "tls_certificate"),
        ([torn, good[1]], "tls_certificate"),
        ([good[0], text], "tls_key"),
        ([good[0], other[1]], "tls_key"),
        (locked, "tls_key"),
    ):
        said = refused(tmp_path, *options(files))
        assert code in said and str(tmp_path) in said.replace("\n", ""), (files, said)
    assert not (tmp_path / "data").exists()  # nothing was made: no token, no database


def test_an_expired_certificate_is_warned_of(tmp_path):
    for name, days, word in (("old", -1, "has expired"), ("soon", 3, "expires on")):
        files = certificate(tmp_path, name, days)
        with Server(tmp_path / name, *options(files)) as server:
            assert word in server.log() and str(files[0]) in server.log()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_hangup_signal_exchanges_the_certificate(tmp_path, workers):
    first, second = certificate(tmp_path, "first"), certificate(tmp_path, "second")
    used = [tmp_path / "cert.pem", tmp_path / "key.pem"]

    def put(files: list[Path]) -> int:
        for source, target in zip(files, used, strict=True):
            target.write_bytes(source.read_bytes())
        return x509.load_pem_x509_certificate(files[0].read_bytes()).serial_number

    before = put(first)
    more = (
        []
        if workers == 1
        else [f"--workers={workers}", f"--database={cluster().create_database()}"]
    )
    with Server(tmp_path / "data", *options(used), *more) as server:
        assert serial(server) == before
        admin = Client(server.url, server.token, ca=first[0])
        assert admin.list_tokens()
        used[1].write_text("damaged")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: server.log().count("the old TLS certificate stays") == workers)
        assert serial(server) == before  # and nothing has stopped
        after = put(second)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: server.log().count("was read again") == workers)
        assert {serial(server) for _ in range(8)} == {after}
        assert admin.list_tokens()  # on the connection that was there
        assert "Traceback" not in server.log()
        assert server.stop() == 0


def test_a_hangup_signal_without_tls_means_nothing(tmp_path):
    with Server(tmp_path / "data") as server:
        server.process.send_signal(signal.SIGHUP)
        assert server.admin().list_tokens()
        assert server.stop() == 0


def test_who_never_finishes_a_handshake_refuses_nobody(tmp_path):
    files = certificate(tmp_path, "good")
    with Server(tmp_path / "data", *options(files)) as server:
        admin = Client(server.url, server.token, ca=files[0])
        assert admin.list_tokens()
        silent = [Raw(server).send(said) for said in (b"", b"\x16\x03\x01", b"GET /") * 100]
        try:
            assert requests.get(server.url + "/health", timeout=60, verify=str(files[0])).ok
            assert admin.list_tokens()
            dropped = 0
            for raw in silent[:100]:  # the oldest had to go
                raw.read_to_end()
                dropped += raw.closed
            assert dropped == 100
        finally:
            for raw in silent:
                raw.close()
        assert "Traceback" not in server.log()


def test_beacons_over_tls(tmp_path):
    """A request sent at once with the end of the handshake is not lost."""
    files = certificate(tmp_path, "good")
    context = ssl.create_default_context(cafile=str(files[0]))
    with Server(tmp_path / "data", *options(files)) as server:
        parts = urlsplit(server.url)
        for _ in range(100):
            sock = socket.create_connection((parts.hostname, parts.port), DEADLINE_S)
            with context.wrap_socket(sock, server_hostname="127.0.0.1") as secured:
                secured.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert secured.recv(65536).startswith(b"HTTP/1.1 200")
