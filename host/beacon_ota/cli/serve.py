"""``beacon-ota serve``: run the orchestrator."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from beacon_ota.console import output
from beacon_ota.errors import UsageError

app = typer.Typer(add_completion=False, help="Run the orchestrator or a mirror.")


@app.command()
def serve(
    data: Annotated[Path, typer.Option(help="Folder of the database and the images.")] = Path(
        "beacon-ota-data"
    ),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    keys: Annotated[
        Path | None, typer.Option(help="Public keys that are trusted (keys.json of the app).")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Accept releases that nobody signed.")
    ] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate chain.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM private key.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="Where the first admin token goes (mode 0600).")
    ] = None,
    forwarded_allow_ips: Annotated[
        str,
        typer.Option(
            metavar="ADDRESSES",
            help="Proxies in front, e.g. 127.0.0.1: they say who a request is from.",
            show_default=False,
        ),
    ] = "",
    poll: Annotated[float, typer.Option(min=1, help="Seconds between a beacon's polls.")] = 60.0,
    zone: Annotated[str, typer.Option(help="Time zone of beacons without a site.")] = "UTC",
    window: Annotated[str, typer.Option(help="Maintenance window, HH:MM-HH:MM.")] = "03:00-05:00",
    announce: Annotated[
        bool | None,
        typer.Option(help="Announce over mDNS; default: unless on a loopback address."),
    ] = None,
    webhook_local: Annotated[
        bool, typer.Option("--webhook-local", help="Let webhooks go to this machine itself.")
    ] = False,
    database: Annotated[
        str | None,
        typer.Option(
            envvar="BEACON_OTA_DATABASE",
            help="postgresql://user@host/name; default: SQLite in the data folder.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            envvar="BEACON_OTA_IMAGES",
            help="Where images are kept: a folder, or s3://bucket/prefix; default: with the data.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, max=64, help="Processes that serve; several need PostgreSQL.")
    ] = 1,
    upstream: Annotated[
        str | None,
        typer.Option(help="Be a mirror of the orchestrator at this URL.", show_default=False),
    ] = None,
    upstream_token_file: Annotated[
        Path | None,
        typer.Option(help="Its token for this mirror; or BEACON_OTA_UPSTREAM_TOKEN."),
    ] = None,
    upstream_ca: Annotated[
        Path | None, typer.Option(help="PEM file that its certificate is verified with.")
    ] = None,
    lease: Annotated[
        str,
        typer.Option(
            help="A mirror: how long it hands out releases without its primary (1m to 30d)."
        ),
    ] = "24h",
    time_scale: Annotated[float, typer.Option(min=0.001, help="Run the clock faster.")] = 1.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Announce URL and token as one line of JSON.")
    ] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Log refusals, too.")] = False,
) -> None:
    """Run the orchestrator until interrupted."""
    from beacon_ota.orchestrator.http.forwarded import parse as parse_proxies
    from beacon_ota.orchestrator.rollout.windows import parse_window
    from beacon_ota.orchestrator.server.listen import ListenOptions
    from beacon_ota.orchestrator.server.log_format import LogFormatter
    from beacon_ota.orchestrator.server.start import run_orchestrator as run
    from beacon_ota.orchestrator.settings import Settings

    _open_standard_files()
    log = logging.StreamHandler(sys.stderr)
    log.setFormatter(LogFormatter())
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[log])
    parse_window(window, zone)
    if (tls_cert is None) != (tls_key is None):
        raise UsageError("tls_incomplete", "--tls-cert and --tls-key go together")
    loopback = host in ("localhost", "::1") or host.startswith("127.")

    def ready(url: str, token: str | None) -> None:
        if as_json:
            typer.echo(json.dumps({"url": url, "token": token, "data": str(data)}))
        else:
            _greet(url, token, token_file, insecure)
        sys.stdout.flush()

    settings = Settings(
        data=data,
        poll_s=poll,
        insecure=insecure,
        trusted=_trusted(data, keys),
        zone=zone,
        window=window,
        webhook_local=webhook_local,
        database=database,
        images=images,
        workers=workers,
        upstream=upstream,
        upstream_token=_upstream_token(upstream, upstream_token_file),
        upstream_ca=upstream_ca,
        lease_s=_lease(lease),
    )
    listen = ListenOptions(
        host=host,
        port=port,
        tls_cert=tls_cert,
        tls_key=tls_key,
        announce=not loopback if announce is None else announce,
        token_file=token_file,
        proxies=parse_proxies(forwarded_allow_ips),
        time_scale=time_scale,
        on_ready=ready,
    )
    run(settings, listen)


def _open_standard_files() -> None:
    """Open what was closed of 0, 1 and 2: else a database gets such a number, and is printed to."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _upstream_token(upstream: str | None, file: Path | None) -> str:
    if upstream is None:
        return ""
    from beacon_ota import text_files

    token = os.environ.get("BEACON_OTA_UPSTREAM_TOKEN", "")
    if file is not None:
        token = text_files.read_line(file, code="token_unreadable", error=UsageError)
    if not token.strip():
        raise UsageError(
            "upstream_token",
            "a mirror needs the token that its primary made for it",
            expected="--upstream-token-file FILE or BEACON_OTA_UPSTREAM_TOKEN",
        )
    return token.strip()


def _lease(text: str) -> float:
    from beacon_ota.orchestrator.lease import MAX_LEASE_S, MIN_LEASE_S
    from beacon_ota.orchestrator.rollout.fields import parse_duration

    found = parse_duration(text, "lease")
    if not MIN_LEASE_S <= found <= MAX_LEASE_S:
        raise UsageError("lease", "this is no lease for a mirror", found=text, expected="1m to 30d")
    return found


def _trusted(data: Path, keys: Path | None):
    """Return the trusted keys: of the option, else of the data folder, else None."""
    file = keys or data / "keys.json"
    if keys is None and not file.is_file():
        return None
    from beacon_ota import text_files
    from beacon_ota.trust import KeySet

    return KeySet.parse(text_files.read_text(file), name=str(file))


def _greet(url: str, token: str | None, token_file: Path | None, insecure: bool) -> None:
    print = output.console.print
    output.print_markup("[bold]Beacon OTA[/] on [cyan]{}[/]   API [cyan]{}/docs[/]", url, url)
    if token is not None:
        output.print_markup("first admin token, shown this once:  [bold]{}[/]", token)
        output.print_markup("  export BEACON_OTA_URL={} BEACON_OTA_TOKEN={}", url, token)
    elif token_file is not None and token_file.exists():
        output.print_markup("admin token in {}", token_file)
    if insecure:
        print("[bold red]insecure[/]: releases without a signature are accepted", highlight=False)
