"""TLS: loads and reloads the certificate, and counts connections during their handshake."""

import asyncio
import contextlib
import datetime
import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from beacon_ota.errors import UsageError
from beacon_ota.orchestrator.http.connections import ConnectionTable
from beacon_ota.orchestrator.http.protocol import BoundedHttpProtocol
from beacon_ota.orchestrator.limits import LIMITS

log = logging.getLogger("beacon_ota.orchestrator")

_EXPIRY_WARNING = datetime.timedelta(days=14)


def load_tls_context(cert: Path, key: Path) -> ssl.SSLContext:
    """Return a context with a certificate chain and its key; log a warning if it is not valid now.

    Raises:
        UsageError: ``tls_unreadable``, ``tls_certificate``, ``tls_key``, each with the file.
    """
    for file in (cert, key):
        try:
            file.read_bytes()
        except OSError as error:
            raise UsageError(
                "tls_unreadable", f"cannot read {file}: {error.strerror}", found=str(file)
            ) from None
    _check_validity(cert)

    def refuse_password() -> str:  # otherwise OpenSSL prompts at the terminal
        raise UsageError(
            "tls_key", f"{key} has a password", found=str(key), expected="a key without one"
        )

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key, refuse_password)
    except (OSError, ValueError) as error:  # SSLError is an OSError
        reason = getattr(error, "reason", None) or "it holds no private key in PEM"
        words = str(reason).lower().replace("_", " ")
        raise UsageError(
            "tls_key", f"{key} is no key of the certificate {cert}: {words}", found=str(key)
        ) from None
    return context


def _check_validity(cert: Path) -> None:
    from cryptography import x509

    try:
        chain = x509.load_pem_x509_certificates(cert.read_bytes())
    except ValueError:
        raise UsageError(
            "tls_certificate",
            f"{cert} holds no certificate in PEM, or a damaged one",
            found=str(cert),
        ) from None
    now = datetime.datetime.now(datetime.UTC)
    for one in chain:
        end = one.not_valid_after_utc
        if now > end:
            log.warning("the TLS certificate %s has expired on %s: clients refuse it", cert, end)
        elif now < one.not_valid_before_utc:
            begin = one.not_valid_before_utc
            log.warning("the TLS certificate %s is not valid before %s", cert, begin)
        elif end - now < _EXPIRY_WARNING:
            log.warning("the TLS certificate %s expires on %s", cert, end)


class ReloadableCertificate:
    """Certificate and key files, and the context for new connections."""

    def __init__(self, cert: Path, key: Path):
        self._files = (cert, key)
        self.context = load_tls_context(cert, key)

    def reload(self) -> None:
        """Read the files again; the old certificate stays if they are unusable."""
        try:
            self.context = load_tls_context(*self._files)
        except UsageError as error:
            log.error("the old TLS certificate stays: %s", error.message)
        else:
            log.warning("the TLS certificate was read again")


class HandshakeProtocol(asyncio.Protocol):
    """A TCP connection until its TLS handshake is done; the table counts it from the start."""

    def __init__(
        self,
        certificate: ReloadableCertificate,
        table: ConnectionTable,
        make_protocol: Callable[[], BoundedHttpProtocol],
    ):
        self._certificate, self._table, self._make_protocol = certificate, table, make_protocol
        self.address = ""
        self._transport: Any = None
        self._early_bytes = b""
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self.address = peer[0] if isinstance(peer, tuple) else ""
        if self._table.admit(self):
            self._task = asyncio.get_running_loop().create_task(self._shake_hands())

    def data_received(self, data: bytes) -> None:
        self._early_bytes += data  # one or two reads, before the handshake takes over

    def connection_lost(self, exc: Exception | None) -> None:
        self._table.remove(self)

    @property
    def idle(self) -> bool:
        """True: nothing was requested yet."""
        return True

    def drop(self) -> None:
        """Close at once, because the table needs the place."""
        self._transport.abort()

    async def _shake_hands(self) -> None:
        inside = self._make_protocol()
        loop = asyncio.get_running_loop()
        handshake = loop.create_task(
            loop.start_tls(
                self._transport,
                inside,
                self._certificate.context,
                server_side=True,
                ssl_handshake_timeout=LIMITS.handshake,
            )
        )
        # start_tls replaces the protocol in the next turn of the loop and calls connection_made in
        # the one after it. Then, before the next read, it gets the early bytes.
        loop.call_soon(loop.call_soon, self._hand_over)
        secured = None
        with contextlib.suppress(
            OSError, asyncio.CancelledError
        ):  # not TLS, too slow, disconnected
            secured = await handshake
        if secured is None or secured.is_closing():
            self._table.remove(self)
            self._transport.abort()
        elif self._table.replace(self, inside):
            inside.connection_made(secured)
        else:
            secured.abort()

    def _hand_over(self) -> None:
        """Pass the bytes that arrived before the handshake began on to it."""
        takes = self._transport.get_protocol()
        while self._early_bytes and takes is not self and not self._transport.is_closing():
            room = takes.get_buffer(len(self._early_bytes))
            count = min(len(room), len(self._early_bytes))
            room[:count] = self._early_bytes[:count]
            self._early_bytes = self._early_bytes[count:]
            takes.buffer_updated(count)
