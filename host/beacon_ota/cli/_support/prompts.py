"""Prompts, step lines and progress of the commands; scripts without a terminal are never asked."""

import contextlib
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from beacon_ota import text_files
from beacon_ota.console import output
from beacon_ota.errors import UsageError

if TYPE_CHECKING:
    from beacon_ota.provision.batch import Row, RowResult
    from beacon_ota.provision.desired_config import Network, Secret
    from beacon_ota.provision.flow import AskSecret, OnStep, Outcome
    from beacon_ota.provision.scan import BeaconFinder
    from beacon_ota.provision.session import SecretError
    from beacon_ota.provision.sighting import Sighting

_STEP_LABELS = {
    "connecting": "Connecting to",
    "proving": "Proving the secret",
    "waiting": "Waiting",
    "looking": "Looking",
    "registering": "Registering",
    "configuring": "Sending key and settings",
    "joining": "Joining",
    "again": "Once more:",
    "mistaken": "Not what you said:",
}
REPEAT_S = 0.2  # after which a signal that did not end a prompt is sent again
_SLOW_STEPS = ("registering", "configuring", "joining", "waiting")


def is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def ask(question: str, default: Any = None, **options: Any) -> Any:
    """Ask at the terminal; an event loop of this thread waits meanwhile.

    A thread of its own could not be ended while it reads. Connections live on: what they receive
    is there afterwards.

    Raises:
        KeyboardInterrupt: Ctrl-C, or a signal to end.
        typer.Abort: there is no more input.
    """
    with _interruptible():
        return typer.prompt(question, default, err=True, **options)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Have Ctrl-C end a prompt at once, also inside an event loop, whose handler would wait."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    own = main and before not in (signal.SIG_IGN, signal.SIG_DFL, None)
    if own:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with _repeated_signals() if own else contextlib.nullcontext():
            yield
    except typer.Abort as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if own:
            signal.signal(signal.SIGINT, before)


@contextmanager
def _repeated_signals() -> Iterator[None]:
    """Send an interrupt again while a signal has not ended the block.

    One that comes while the terminal is made ready for a line is noticed with the next key only.
    """
    if not hasattr(signal, "pthread_kill"):
        yield
        return
    over = threading.Event()
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)

    def repeat() -> None:
        receiver.recv(1)
        while not over.wait(REPEAT_S):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    repeater = threading.Thread(target=repeat, daemon=True)
    repeater.start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        sender.send(b"\0")
        repeater.join()
        receiver.close()
        sender.close()


def read_first_line(file: Path | None) -> str:
    """Return the first line of a file, "" when no file is given."""
    return text_files.read_line(file) if file is not None else ""


def ask_password(ssid: str, file: Path | None, is_open: bool) -> str:
    if is_open and file is not None:
        raise UsageError("options", "--open and --password-file exclude each other")
    if is_open or file is not None:
        return read_first_line(file)
    if is_terminal():
        question = output.make_visible(f"Password of {ssid} (empty: none)")
        return ask(question, "", hide_input=True, show_default=False)
    raise UsageError(
        "password_missing", "which password? There is nobody to ask: --password-file, or --open"
    )


def secret_source(pin: str | None, file: Path | None, pop: str | None) -> "AskSecret":
    """Return a source of the secret: the given one, or a prompt until the secret is right."""
    from beacon_ota.provision import flow
    from beacon_ota.provision.desired_config import Secret

    if sum(value is not None for value in (pin, file, pop)) > 1:
        raise UsageError("options", "one of --pin, --pin-file and --pop is enough")
    if pop is not None:
        return flow.fixed_secret(Secret(pop=pop.encode()))
    if pin is not None or file is not None:
        return flow.fixed_secret(Secret(pin=pin if pin is not None else read_first_line(file)))
    if not is_terminal():
        raise UsageError("pin_missing", "which PIN? There is nobody to ask: --pin, --pin-file")
    return _ask_pin


async def _ask_pin(error: "SecretError | None") -> "Secret":
    from beacon_ota.provision.desired_config import Secret

    if error is not None:
        output.print_markup("[yellow]{}[/]", error.message, to=output.error_console)
    while True:
        text = ask("PIN on the label")
        try:
            return Secret(pin=text.strip())
        except UsageError as refused:
            output.print_markup(
                "[yellow]{}: {}[/]", refused.message, refused.expected, to=output.error_console
            )


async def choose_network(networks: list[tuple[bytes, int]]) -> "Network":
    """Ask which of the networks that the beacon sees it joins."""
    from beacon_ota.provision.desired_config import Network

    for number, (ssid, rssi) in enumerate(networks, 1):
        name = ssid.decode("utf-8", "replace")
        output.print_markup(
            "  {:2}  {}  [dim]{} dBm[/]", number, name, rssi, to=output.error_console
        )
    while True:
        text = ask("Network (number or name)", "1" if networks else None)
        ssid = text.encode()
        if text.isdigit() and 1 <= int(text) <= len(networks):
            ssid = networks[int(text) - 1][0]
        password = ask("Password (empty: none)", "", hide_input=True, show_default=False)
        try:
            return Network.of(ssid, password)
        except UsageError as refused:
            output.print_markup("[yellow]{}[/]", refused.message, to=output.error_console)


async def find_sighting(
    finder: "BeaconFinder",
    wanted: str | None,
    seconds: float,
    quiet: bool,
    *,
    opened: bool = True,
) -> "Sighting":
    """Return the beacon that is meant; at a terminal, ask which one it is."""
    from beacon_ota.provision.scan import format_rssi

    if wanted is not None or quiet or not is_terminal():
        return await finder.find(wanted, seconds, opened=opened)
    with output.error_console.status("Looking for beacons …"):
        async with finder.listen() as scanner:
            await scanner.wait(min(seconds, 5))
            found = scanner.beacons()
    ready = [one for one in found if one.open or not opened]
    if len(ready) < 2:
        return ready[0] if ready else await finder.find(None, seconds, opened=opened)
    for number, one in enumerate(ready, 1):
        output.print_markup(
            "  {:2}  {}  {}  {}",
            number,
            one.name,
            format_rssi(one.rssi),
            one.state,
            to=output.error_console,
        )
    which = ask("Beacon", 1, type=typer.IntRange(1, len(ready)))  # type: ignore[attr-defined]
    return ready[which - 1]


@contextmanager
def show_steps(quiet: bool) -> Iterator["OnStep"]:
    """Print each step with the seconds since the start; yields the callback for steps."""
    import time

    if quiet:
        yield lambda step, detail: None
        return
    began = time.monotonic()
    status = output.error_console.status("…")
    try:

        def tell(step: str, detail: str) -> None:
            line = output.literal_text(f"{_STEP_LABELS.get(step, step)} {detail}".strip())
            output.print_markup(
                "[dim]{:6.1f} s[/]  {}", time.monotonic() - began, line, to=output.error_console
            )
            if step in _SLOW_STEPS:
                status.start()
                status.update(line)
            else:
                status.stop()  # a prompt and a spinner do not share a line

        yield tell
    finally:
        status.stop()


@contextmanager
def show_batch_progress(
    total: int, quiet: bool
) -> Iterator[tuple[Callable[["Row"], None], Callable[["RowResult"], None]]]:
    """Show a bar and the result of each row; yields the callbacks for a row's start and result."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=output.error_console, disable=quiet) as bar:
        task = bar.add_task("Provisioning", total=total)

        def begun(row: "Row") -> None:
            bar.update(task, description=output.escape_markup(f"Provisioning {row.beacon}"))

        def done(one: "RowResult") -> None:
            mark = output.fill_markup("[green]✓[/]" if one.ok else "[red]✗[/]")
            bar.print(output.fill_markup("{} {}  {}  {}", mark, one.beacon, one.result, one.detail))
            bar.advance(task)

        yield begun, done


def print_outcome(outcome: "Outcome", as_json: bool) -> None:
    """Print the outcome of provisioning a beacon."""
    facts = outcome.as_dict()
    if as_json:
        output.print_json(facts)
        return
    online = "online" if outcome.poll == "ok" else "provisioned"
    output.print_markup(
        "[green]✓[/] {} is {}, after {:.1f} s", outcome.name, online, outcome.seconds
    )
    if outcome.mistaken_for:
        output.print_markup(
            "  [yellow]--type {}: it is no such board; what it says itself counts[/]",
            outcome.mistaken_for,
        )
    if outcome.registered == "retyped":
        output.print_markup("  [yellow]it was registered as another board; that is corrected[/]")
    for name in ("beacon_id", "device_type", "version", "ssid", "rssi", "ip", "registered", "key"):
        if facts[name] is not None:
            output.print_markup("  {:11}  {}", name, facts[name])


def confirm_action(question: str, yes: bool) -> None:
    """Ask before an action that cannot be taken back; without a terminal, ``--yes`` is needed.

    Raises:
        UsageError: ``not_confirmed``: there is no terminal to ask at.
        typer.Abort: the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("not_confirmed", f"{question} Say --yes to do it.", expected="--yes")
    with _interruptible():
        typer.confirm(output.make_visible(question), abort=True)
