"""What the firmware costs the beacon: ``python -m tests.bench.device [--quick] [--json]``.

Everything runs in MicroPython's unix port, whose objects are twice the size of a C3's and whose
times mean little by themselves. So times are ratios within one run. What a chip says to the same is
in docs/emulated-c3.md and docs/firmware.md.
"""

import argparse
import contextlib
import json
import os
import re
import socketserver
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from beacon_ota import paths
from beacon_ota.images import app_folder, appfs, synthetic
from beacon_ota.virtual.beacon import VirtualBeacon
from beacon_ota.virtual.flash.nor import Flash
from beacon_ota.virtual.net.network import AccessPoint, Network
from tests import micropython
from tests.bench.updates import measure_updates
from tests.firmware import measure_crypto, measure_heap
from tests.firmware.interpreter import Interpreter
from tests.virtual import rig

HERE = Path(__file__).parent
SECTOR = 4096
SECTORS = 405  # of a release of 1.66 MB


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        measure: what was measured.
        ours: the number.
        unit: of the number.
        wanted: the bound on it, None where there is none.
        reference: what it is measured against, in its own words.
    """

    measure: str
    ours: float
    unit: str
    wanted: float | None
    reference: str = ""


@contextlib.contextmanager
def source(size: int) -> Iterator[int]:
    """Serve ``size`` bytes over HTTP on loopback, as often as asked; yields the port."""
    body = os.urandom(size)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            while self.rfile.readline() not in (b"\r\n", b""):
                pass
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n"
            with contextlib.suppress(ConnectionError):
                self.wfile.write(head.encode() + body)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


USED = ("crypto", "net", "ota", "wire")  # packages of the app that a download takes


PATH = (micropython.APP, HERE, HERE.parent / "firmware", Path(".frozen"))


def loop(quick: bool) -> Iterator[Row]:
    """The download's loop against the bare one, on a virtual beacon's flash."""
    size = (16 if quick else 96) * SECTOR
    app = paths.data_path("firmware", "app")
    used = [app / "modules.py", *(p for name in USED for p in (app / name).glob("*.py"))]
    files = {f"app/{path.relative_to(app)}": path.read_text() for path in used}
    files |= {name: (HERE / name).read_text() for name in ("device_loop.py", "device_beacon.py")}
    files["main.py"] = files.pop("device_beacon.py")
    with source(size) as port:
        files["job.json"] = json.dumps([port, size, 2 if quick else 6])
        chip = Flash(rig.image(files))
        with VirtualBeacon(chip, network=Network([AccessPoint(b"bench")])) as beacon:
            beacon.power_on()
            printed = rig.finish(beacon, 60)
        chip.close()
    found = re.search(r"^took (.*)$", printed, re.MULTILINE)
    if not found:
        raise RuntimeError(f"the beacon measured nothing: {printed[-500:]}")
    bare, ours = json.loads(found[1])
    yield Row("download + write + hash, over the bare loop", ours / bare, "x", 1.05, "bare loop")


def memory(quick: bool) -> Iterator[Row]:
    """The same without flash: reading back is all the more then. And how long others wait."""
    size = (100 if quick else SECTORS) * SECTOR
    rounds = 6 if quick else 20
    long = 4 * SECTORS * SECTOR  # several turns
    with (
        source(size) as port,
        source(long) as other,
        Interpreter("import device_ram", path=PATH, heap="400K") as device,
    ):
        ask = "device_ram.{}(device_ram.Flash({{1}}), {{0}}, {{1}}, {{2}})"
        bare, ours = device.ask(ask.format("race"), port, size, rounds)
        stall = device.ask(ask.format("stall"), other, long, rounds)
    yield Row("the same, flash being memory", ours / bare, "x", None, "bare loop; 1.14 on a C3")
    yield Row("longest turn of the update, flash time aside", stall / 1000, "ms", 20)


def heap(_: bool) -> Iterator[Row]:
    """Heap when idle, and what a signed update takes over that, its code included."""
    idle, update = measure_heap.update(synthetic.app_image(16384), signed=True)
    yield Row(
        "heap of an update over idle, 64-bit objects", update / 1024, "KB", 24, "bare loop: 6.0"
    )
    yield Row("heap when idle, 64-bit objects", idle / 1024, "KB", 92)


def crypto(_: bool) -> Iterator[Row]:
    """Verification and key exchange, against plain double-and-add on P-256."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measure_crypto.compiled(folder)
        with Interpreter(
            measure_crypto.SETUP + measure_crypto.WORK,
            path=(folder, HERE.parent / "firmware"),
            heap="400K",
        ) as device:
            plain = device.ask(measure_crypto.OPERATIONS["P-256 plain double-and-add"])
            for title, wanted in (
                ("P-256 any point", 40 / 56.4),
                ("P-256 base point", 20 / 56.4),
                ("RSA-3072 PSS verification", 0.4),
            ):
                took = device.ask(measure_crypto.OPERATIONS[title])
                yield Row(title, took / plain, "x", wanted, "plain double-and-add on P-256")


def payload(_: bool) -> Iterator[Row]:
    """Compiled size of the app."""
    files = appfs.compile_sources(app_folder.read_sources(paths.data_path("firmware", "app")))
    yield Row("app, compiled", sum(map(len, files.values())) / 1024, "KB", 96, "room: 171.7")


# What the design wants of each: KB fetched, sectors erased, seconds.
WANTED = {"full": (None, None, None), "app": (120, 30, 4), "hotfix": (24, 6, 1.5)}
NAMES = {"full": "full update", "app": "update of the app alone", "hotfix": "hotfix of one line"}


def updates(_: bool) -> Iterator[Row]:
    """Bytes, sectors and seconds of an update; the bare loop fetches and writes everything."""
    for one in measure_updates():
        name, wanted = NAMES[one.kind], WANTED[one.kind]
        whole = f"bare loop: {one.size / 1024:,.0f}"
        yield Row(f"{name}, fetched", one.fetched / 1024, "KB", wanted[0], whole)
        whole = f"bare loop: {one.size // SECTOR}"
        yield Row(f"{name}, erased", one.erased, "sectors", wanted[1], whole)
        yield Row(f"{name}, to the reboot", one.seconds, "s", wanted[2])


PARTS = (payload, loop, memory, heap, crypto, updates)


def measure(*, quick: bool = False) -> list[Row]:
    """Measure everything: about a minute, with ``quick`` a quarter of that."""
    return [row for part in PARTS for row in part(quick)]


def _number(value: float) -> str:
    return f"{value:,.3f}".rstrip("0").rstrip(".")


def main() -> None:
    """Print the table, or JSON: a list of objects with the fields of :class:`Row`."""
    options = argparse.ArgumentParser(prog="python -m tests.bench.device")
    options.add_argument("--quick", action="store_true", help="fewer rounds")
    options.add_argument("--json", action="store_true", help="rows as JSON")
    chosen = options.parse_args()
    rows = measure(quick=chosen.quick)
    if chosen.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return

    from rich.console import Console
    from rich.table import Table

    table = Table("measure", "ours", "wanted", "against")
    for row in rows:
        wanted = "" if row.wanted is None else f"≤ {_number(row.wanted)}"
        table.add_row(row.measure, f"{_number(row.ours)} {row.unit}", wanted, row.reference)
    Console().print(table)


if __name__ == "__main__":
    main()
