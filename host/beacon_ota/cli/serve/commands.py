"""The command ``beacon-ota serve``."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from beacon_ota.cli._support.options import expand_groups
from beacon_ota.cli.serve.options import (
    AddressOptions,
    FleetOptions,
    MirrorOptions,
    StorageOptions,
    TrustOptions,
)
from beacon_ota.console import output

app = typer.Typer(add_completion=False, help="Run the orchestrator or a mirror.")


@app.command("serve")
@expand_groups
def serve_orchestrator(
    *,
    data: Annotated[Path, typer.Option(help="Folder of the database and the images.")] = Path(
        "beacon-ota-data"
    ),
    listen: AddressOptions,
    trust: TrustOptions,
    token_file: Annotated[
        Path | None, typer.Option(help="Where the first admin token goes (mode 0600).")
    ] = None,
    fleet: FleetOptions,
    webhook_local: Annotated[
        bool, typer.Option("--webhook-local", help="Let webhooks go to this machine itself.")
    ] = False,
    storage: StorageOptions,
    mirror: MirrorOptions,
    time_scale: Annotated[float, typer.Option(min=0.001, help="Run the clock faster.")] = 1.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Announce URL and token as one line of JSON.")
    ] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Log refusals, too.")] = False,
) -> None:
    """Run the orchestrator until interrupted."""
    from beacon_ota.orchestrator.http.forwarded import parse_proxies
    from beacon_ota.orchestrator.http.prefix import parse_prefix
    from beacon_ota.orchestrator.rollout.windows import parse_window
    from beacon_ota.orchestrator.server.listen import ListenOptions
    from beacon_ota.orchestrator.server.start import run_orchestrator
    from beacon_ota.orchestrator.settings import Settings

    _open_standard_files()
    _configure_logging(verbose)
    parse_window(fleet.window, fleet.zone)
    listen.check_tls()

    def announce_start(url: str, token: str | None) -> None:
        if as_json:
            typer.echo(json.dumps({"url": url, "token": token, "data": str(data)}))
        else:
            _print_greeting(url, token, token_file, trust.insecure)
            output.print_markup("data in [cyan]{}[/]", data.absolute())
        sys.stdout.flush()

    settings = Settings(
        data=data,
        poll_s=fleet.poll,
        insecure=trust.insecure,
        trusted=trust.read_trusted_keys(data),
        zone=fleet.zone,
        window=fleet.window,
        webhook_local=webhook_local,
        database=storage.database,
        images=storage.images,
        workers=storage.workers,
        upstream=mirror.upstream,
        upstream_token=mirror.read_token(),
        upstream_ca=mirror.upstream_ca,
        lease_s=mirror.parse_lease(),
    )
    run_orchestrator(
        settings,
        ListenOptions(
            host=listen.host,
            port=listen.port,
            tls_cert=listen.tls_cert,
            tls_key=listen.tls_key,
            announce=listen.announced,
            token_file=token_file,
            proxies=parse_proxies(listen.forwarded_allow_ips),
            path_prefix=parse_prefix(listen.path_prefix),
            time_scale=time_scale,
            on_ready=announce_start,
        ),
    )


def _configure_logging(verbose: bool) -> None:
    from beacon_ota.orchestrator.server.log_format import LogFormatter

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter())
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])


def _open_standard_files() -> None:
    """Open the closed ones of the descriptors 0, 1 and 2.

    A database would get such a number otherwise, and messages would be printed into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _print_greeting(url: str, token: str | None, token_file: Path | None, insecure: bool) -> None:
    output.print_markup("[bold]Beacon OTA[/] on [cyan]{}[/]   API [cyan]{}/docs[/]", url, url)
    if token is not None:
        output.print_markup("first admin token, shown this once:  [bold]{}[/]", token)
        output.print_markup("  export BEACON_OTA_URL={} BEACON_OTA_TOKEN={}", url, token)
    elif token_file is not None and token_file.exists():
        output.print_markup("admin token in {}", token_file)
    if insecure:
        output.print_markup("[bold red]insecure[/]: releases without a signature are accepted")
