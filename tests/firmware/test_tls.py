"""HTTPS with a pinned certificate, for sites that want the transport hidden, too."""

import datetime
import ssl
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.firmware.beacons import bench, make
from tests.firmware.server import Server

NAME = "orchestrator.local"
HEAP = 512 * 1024  # TLS lives in Python's heap here; on the chip it does not
HTTPS = {"orch_url": b"https://orchestrator.local:8443"}


def certificate(name: str, *addresses: str) -> tuple[bytes, bytes, bytes]:
    """A self-signed certificate for a name and addresses: (DER, PEM, key in PEM)."""
    names = [x509.DNSName(name), *(x509.IPAddress(ip_address(one)) for one in addresses)]
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime(2000, 1, 1))
        .not_valid_after(now + datetime.timedelta(days=365))
        .add_extension(x509.SubjectAlternativeName(names), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return (
        made.public_bytes(serialization.Encoding.DER),
        made.public_bytes(serialization.Encoding.PEM),
        private,
    )


@pytest.fixture(scope="module")
def pinned() -> tuple[bytes, bytes, bytes]:
    return certificate(NAME)


@pytest.fixture
def server(pinned, tmp_path) -> Server:
    _, pem, key = pinned
    (tmp_path / "cert.pem").write_bytes(pem + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem")
    return Server(tls=context)


def test_an_update_over_https(small_core, pinned, server):
    old, new = (make(small_core, v, extra={"ca.der": pinned[0]}) for v in ("1.0.0", "2.0.0"))
    with bench(old, server=server, settings=HTTPS, heap=HEAP, scale=5) as b:
        b.server.image, b.server.offering = new, True
        b.reported("success")


def test_a_server_with_another_certificate(small_core, server):
    old = make(small_core, "1.0.0", extra={"ca.der": certificate(NAME)[0]})
    with bench(old, server=server, settings=HTTPS, heap=HEAP) as b:
        b.wait(lambda: b.beacon.console.count("trusted CA") > 1)
        assert not b.server.requests
        assert "connect sending: " in b.beacon.console and "trusted CA" in b.beacon.console
        assert [e for _, e in b.causes()] == [None] and "journal" not in b.beacon.console


def test_https_without_a_pinned_certificate(small_core, v1, server):
    with bench(v1, server=server, settings=HTTPS) as b:
        b.wait(lambda: "https needs ca.der" in b.beacon.console)
        assert not b.server.requests
