"""HTTPS with a pinned certificate, for sites that want the transport hidden, too."""

import datetime
import json
import ssl
import time
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.firmware.beacons import bench, make
from tests.firmware.server import Fault, Server

NAME = "orchestrator.local"
HEAP = 512 * 1024  # TLS lives in Python's heap here; on the chip it does not
HTTPS = {"orch_url": b"https://orchestrator.local:8443"}


DAY = datetime.timedelta(days=1)
NOW = datetime.datetime.now(datetime.UTC)
EC_KEY = ec.EllipticCurvePrivateKey


def issued(
    name: str,
    addresses: tuple[str, ...] = (),
    begins: datetime.datetime = NOW - 365 * DAY,
    ends: datetime.datetime = NOW + 365 * DAY,
    by: tuple[x509.Certificate, EC_KEY] | None = None,
) -> tuple[x509.Certificate, EC_KEY]:
    """A certificate for a name and addresses, self-signed or issued by an authority."""
    names = [x509.DNSName(name), *(x509.IPAddress(ip_address(one)) for one in addresses)]
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by[0].subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.SubjectAlternativeName(names), False)
        .add_extension(x509.BasicConstraints(ca=not by, path_length=None), True)
        .sign(by[1] if by else key, hashes.SHA256())
    )
    return made, key


def der(made: x509.Certificate) -> bytes:
    return made.public_bytes(serialization.Encoding.DER)


def certificate(name: str, *addresses: str) -> tuple[bytes, bytes, bytes]:
    """A self-signed certificate for a name and addresses: (DER, PEM, key in PEM)."""
    made, key = issued(name, addresses)
    return der(made), made.public_bytes(serialization.Encoding.PEM), private(key)


def private(key: EC_KEY) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def serving(folder, pem: bytes) -> Server:
    """An orchestrator with a certificate and its key."""
    (folder / "cert.pem").write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem")
    return Server(tls=context)


@pytest.fixture(scope="module")
def pinned() -> tuple[bytes, bytes, bytes]:
    return certificate(NAME)


@pytest.fixture
def server(pinned, tmp_path) -> Server:
    _, pem, key = pinned
    return serving(tmp_path, pem + key)


def test_an_update_over_https(small_core, pinned, server):
    old, new = (make(small_core, v, extra={"ca.der": pinned[0]}) for v in ("1.0.0", "2.0.0"))
    with bench(old, server=server, settings=HTTPS, heap=HEAP, scale=5) as b:
        b.server.image, b.server.offering = new, True
        b.reported("success")


# -- the clock: after a power cut it says 2000, and the certificates begin last year


def test_back_after_a_power_cut(small_core, pinned, server):
    old = make(small_core, "1.0.0", extra={"ca.der": pinned[0]})
    with bench(old, server=server, settings=HTTPS, heap=HEAP, scale=5) as b:
        for times in (1, 2):
            heard = len(b.server.requests)
            b.wait(lambda: len(b.server.requests) > heard + 3)  # noqa: B023
            assert b.server.refused == ["clock_skew"] * times, "the clock was unset"
            assert abs(b.beacon.clock.unix - b.server.now()) < 60
            assert not b.server.reports[-1].get("clock_unset")
            b.beacon.power_cut()
            b.beacon.power_on()


def test_a_certificate_that_was_renewed_meanwhile(small_core, tmp_path):
    """The authority's begins last year, the orchestrator's this hour; the clock knows neither."""
    authority = issued("authority", begins=NOW - 365 * DAY, ends=NOW + 3650 * DAY)
    made, key = issued(NAME, begins=NOW - DAY / 24, by=authority)
    server = serving(tmp_path, made.public_bytes(serialization.Encoding.PEM) + private(key))
    old = make(small_core, "1.0.0", extra={"ca.der": der(authority[0])})
    with bench(old, server=server, settings=HTTPS, heap=HEAP, scale=5) as b:
        b.wait(lambda: b.polled("1.0.0"))


def test_a_date_that_was_guessed_is_no_time(small_core, pinned, server):
    """Until the orchestrator says the time there is none, and a reset does not make it one."""
    old = make(small_core, "1.0.0", extra={"ca.der": pinned[0]})
    with bench(old, server=server, settings=HTTPS, heap=HEAP, scale=5) as b:
        b.server.stranger = lambda _: Fault(status=404)
        for _ in range(2):
            heard = len(b.server.requests)
            b.wait(lambda: len(b.server.requests) > heard + 1)  # noqa: B023
            assert abs(b.beacon.clock.unix - (NOW - 365 * DAY).timestamp()) < 3600
            b.beacon.reset()
        sent = [json.loads(r.body) for r in b.server.requests if r.body]
        assert sent and all(doc["clock_unset"] and doc["updated_at"] == 0 for doc in sent)
        b.server.stranger = lambda _: None
        b.wait(lambda: b.server.reports)
        assert "clock_unset" not in b.server.reports[-1]
        assert abs(b.beacon.clock.unix - b.server.now()) < 60


def test_a_certificate_that_has_expired(small_core, pinned, server):
    """Once the clock is known an expired certificate is refused, and a reset changes nothing."""
    old = make(small_core, "1.0.0", extra={"ca.der": pinned[0]})
    with bench(old, server=server, settings=HTTPS, heap=HEAP, scale=5) as b:
        b.wait(lambda: b.polled("1.0.0"))
        b.beacon.set_clock(time.time() + 2 * 365 * 86400)
        for _ in range(2):
            refused = b.beacon.console.count("tls: good from")
            b.wait(lambda: b.beacon.console.count("tls: good from") > refused + 1)  # noqa: B023
            heard = len(b.server.requests)
            b.wait(lambda: b.beacon.console.count("tls: good from") > refused + 3)  # noqa: B023
            assert len(b.server.requests) == heard
            b.beacon.reset()


def test_a_strangers_certificate_moves_no_clock(small_core, tmp_path, pinned):
    """Whatever date he shows: who signed it is checked, and the date is forgotten again."""
    made, key = issued(NAME, begins=NOW - DAY)
    server = serving(tmp_path, made.public_bytes(serialization.Encoding.PEM) + private(key))
    old = make(small_core, "1.0.0", extra={"ca.der": pinned[0]})
    with bench(old, server=server, settings=HTTPS, heap=HEAP) as b:
        b.wait(lambda: b.beacon.console.count("orchestrator: connect") > 2)
        assert not b.server.requests


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
