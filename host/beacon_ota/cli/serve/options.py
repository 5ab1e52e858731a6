"""Options of ``beacon-ota serve``, in groups, and the values that they stand for."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from beacon_ota import text_files
from beacon_ota.cli._support.options import OptionGroup
from beacon_ota.errors import UsageError

if TYPE_CHECKING:
    from beacon_ota.trust import KeySet


@dataclass(frozen=True)
class AddressOptions(OptionGroup):
    """Where the server listens, and whether it uses TLS."""

    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate chain.")] = None
    tls_key: Annotated[Path | None, typer.Option(help="PEM private key.")] = None
    announce: Annotated[
        bool | None,
        typer.Option(help="Announce over mDNS; default: unless on a loopback address."),
    ] = None
    forwarded_allow_ips: Annotated[
        str,
        typer.Option(
            metavar="ADDRESSES",
            help="Proxies in front, e.g. 127.0.0.1: they say who a request is from.",
            show_default=False,
        ),
    ] = ""

    path_prefix: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            help="Path below which a proxy shows dashboard and API, e.g. /ota.",
            show_default=False,
        ),
    ] = ""

    def check_tls(self) -> None:
        """Refuse half a TLS identity (UsageError ``tls_incomplete``)."""
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("tls_incomplete", "--tls-cert and --tls-key go together")

    @property
    def announced(self) -> bool:
        """Whether the server is announced over mDNS."""
        if self.announce is not None:
            return self.announce
        return not (self.host in ("localhost", "::1") or self.host.startswith("127."))


@dataclass(frozen=True)
class TrustOptions(OptionGroup):
    """Which releases are accepted."""

    keys: Annotated[
        Path | None, typer.Option(help="Public keys that are trusted (keys.json of the app).")
    ] = None
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Accept releases that nobody signed.")
    ] = False

    def read_trusted_keys(self, data: Path) -> "KeySet | None":
        """Return the trusted keys: of the option, else of the data folder, else None."""
        file = self.keys or data / "keys.json"
        if self.keys is None and not file.is_file():
            return None
        from beacon_ota.trust import KeySet

        return KeySet.parse(text_files.read_text_file(file), name=str(file))


@dataclass(frozen=True)
class FleetOptions(OptionGroup):
    """How beacons are served unless their site says otherwise."""

    poll: Annotated[float, typer.Option(min=1, help="Seconds between a beacon's polls.")] = 60.0
    zone: Annotated[str, typer.Option(help="Time zone of beacons without a site.")] = "UTC"
    window: Annotated[str, typer.Option(help="Maintenance window, HH:MM-HH:MM.")] = "03:00-05:00"


@dataclass(frozen=True)
class StorageOptions(OptionGroup):
    """Where tables and images are kept, and how many processes serve them."""

    database: Annotated[
        str | None,
        typer.Option(
            envvar="BEACON_OTA_DATABASE",
            help="postgresql://user@host/name; default: SQLite in the data folder.",
            show_default=False,
        ),
    ] = None
    images: Annotated[
        str | None,
        typer.Option(
            envvar="BEACON_OTA_IMAGES",
            help="Where images are kept: a folder, or s3://bucket/prefix; default: with the data.",
            show_default=False,
        ),
    ] = None
    workers: Annotated[
        int, typer.Option(min=1, max=64, help="Processes that serve; several need PostgreSQL.")
    ] = 1


@dataclass(frozen=True)
class MirrorOptions(OptionGroup):
    """The primary that a mirror copies, and its lease."""

    upstream: Annotated[
        str | None,
        typer.Option(help="Be a mirror of the orchestrator at this URL.", show_default=False),
    ] = None
    upstream_token_file: Annotated[
        Path | None,
        typer.Option(help="Its token for this mirror; or BEACON_OTA_UPSTREAM_TOKEN."),
    ] = None
    upstream_ca: Annotated[
        Path | None, typer.Option(help="PEM file that its certificate is verified with.")
    ] = None
    lease: Annotated[
        str,
        typer.Option(
            help="A mirror: how long it hands out releases without its primary (1m to 30d)."
        ),
    ] = "24h"

    def read_token(self) -> str:
        """Return the token that the primary made for this mirror, "" for a primary.

        Raises:
            UsageError: ``upstream_token``, ``token_unreadable``.
        """
        if self.upstream is None:
            return ""
        token = os.environ.get("BEACON_OTA_UPSTREAM_TOKEN", "")
        if self.upstream_token_file is not None:
            token = text_files.read_line(
                self.upstream_token_file, code="token_unreadable", error=UsageError
            )
        if not token.strip():
            raise UsageError(
                "upstream_token",
                "a mirror needs the token that its primary made for it",
                expected="--upstream-token-file FILE or BEACON_OTA_UPSTREAM_TOKEN",
            )
        return token.strip()

    def parse_lease(self) -> float:
        """Return the lease, seconds (UsageError ``lease``)."""
        from beacon_ota.orchestrator.lease import MAX_LEASE_S, MIN_LEASE_S
        from beacon_ota.orchestrator.rollout.fields import parse_duration

        found = parse_duration(self.lease, "lease")
        if not MIN_LEASE_S <= found <= MAX_LEASE_S:
            raise UsageError(
                "lease", "this is no lease for a mirror", found=self.lease, expected="1m to 30d"
            )
        return found
