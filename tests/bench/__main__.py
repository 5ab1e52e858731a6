"""``make bench``: the table of docs/measures.md in one run, with JSON and a picture in reports/.

Ours, the peers and the floors are loaded by the same generator, one after the other, so that a
line's numbers are a ratio whatever else the machine does. Numbers, no verdicts.

    python -m tests.bench [--quick] [--only polls,downloads,…] [--no-peers]
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import uvloop

from tests.bench import orchestrator_subject, swarms, table
from tests.bench.load import hammer
from tests.bench.peers import environment
from tests.bench.peers.environment import Missing
from tests.bench.peers.goosebit import Goosebit
from tests.bench.peers.nginx import nginx
from tests.bench.peers.openmv import Openmv
from tests.bench.subject import ServerSubject, start_static_server
from tests.bench.table import Row

PARTS = ("floors", "ours", "openmv", "goosebit", "brick", "large", "cut", "device")
BARE = b"GET / HTTP/1.1\r\nHost: o\r\n\r\n"
DEVICE_S = 200
BUDGET_S = 470.0  # of a whole run; what would go beyond it is left out, and said to be
NEEDS_S = {"goosebit": 30, "brick": 45, "large": 125, "cut": 70, "device": 40}


class Bench:
    """One run: what was measured, and what could not be."""

    def __init__(
        self, quick: bool, only: set[str], peers: bool, seconds: float | None, beacons: int
    ):
        self.quick, self.only, self.peers, self.beacons = quick, only, peers, beacons
        self.seconds = seconds or (1.5 if quick else 5.0)
        self.raw: dict[str, Any] = {"machine": table.machine(), "quick": quick}
        self.notes: list[str] = []
        self.failed = False
        self.began = time.monotonic()

    def say(self, name: str, value: Any) -> None:
        """Keep a result, and show that there is one."""
        self.raw[name] = value
        print(f"{time.strftime('%H:%M:%S')} {name:32} {json.dumps(value)[:170]}", file=sys.stderr)

    def part(self, name: str, work: Callable[[], Any]) -> None:
        """Do a part; what cannot be measured here does not keep the others from it."""
        if self.only and name not in self.only:
            return
        ends = time.monotonic() - self.began + NEEDS_S.get(name, 0)
        if not self.only and not self.quick and ends > BUDGET_S:
            self.notes.append(f"{name}: left out for want of time; --only {name} measures it")
            return
        try:
            work()
        except Missing as error:
            self.notes.append(f"{name}: {error}")
        except Exception as error:
            self.failed = True
            self.notes.append(f"{name} failed: {type(error).__name__}: {error}")
            if not self.quick:
                import traceback

                traceback.print_exc()

    # ---- the parts

    def run(self) -> None:
        with tempfile.TemporaryDirectory(prefix="beacon-bench-") as name:
            folder = Path(name)
            image = folder / "www" / "image.bin"
            image.parent.mkdir()
            image.write_bytes(bytes(range(256)) * (orchestrator_subject.SIZE // 256))
            folder.chmod(0o755)
            self.part("floors", lambda: uvloop.run(self._floors(folder, image)))
            self.part("ours", lambda: uvloop.run(self._ours(folder)))
            self.part("openmv", lambda: uvloop.run(self._openmv(folder, image)))
            self.part("goosebit", lambda: uvloop.run(self._goosebit(folder, image)))
        self.part("brick", lambda: self.say("brick", swarms.silent_brick(self.quick)))
        self.part("large", lambda: self.say("large", swarms.large(self.quick)))
        self.part("cut", lambda: self.say("cut", swarms.power_cut(self.quick)))
        self.part("device", self._device)
        self.raw["machine"]["load_after"] = table.machine()["load"]

    async def _floors(self, folder: Path, image: Path) -> None:
        with start_static_server(folder, image) as server:
            await self._load("floor poll", server, BARE, 16)
            await self._load("floor download", server, BARE.replace(b"/ ", b"/file "), 8)
        try:
            server = nginx(folder, image)
        except Missing as error:
            self.notes.append(str(error))
            return
        with server:
            await self._load("nginx download", server, BARE.replace(b"/ ", b"/image.bin "), 8)

    async def _load(
        self, name: str, server: ServerSubject, request: bytes, connections: int
    ) -> None:
        many = (request for _ in range(10_000_000))
        self.say(name, await hammer(server.url, many, connections, self.seconds))

    async def _ours(self, folder: Path) -> None:
        with ExitStack() as stack:
            server = stack.enter_context(orchestrator_subject.start_orchestrator(folder))
            subject = orchestrator_subject.OrchestratorSubject(server, server.said["token"])
            await subject.register(self.beacons)
            self.say("ours rss at start", {"mb": round(server.rss / 1e6, 1)})
            subject.roll_out("1.1.0")
            began = time.perf_counter()
            await subject.offers(self.beacons, 64)
            per_s = self.beacons / (time.perf_counter() - began)
            self.say("ours first offers", {"per_s": round(per_s)})
            for connections in (16, 1, 64):
                found = await subject.polls(connections, self.seconds)
                self.say(f"ours poll {connections}", found)
            self.say("ours poll fresh", await subject.fresh_polls(16, self.seconds))
            self.say("ours download", await subject.downloads(8, self.seconds))
            self.say("ours slow readers", await subject.slow(256, 20_000, 2 if self.quick else 5))
            self.say("ours page", await asyncio.to_thread(subject.page, 5 if self.quick else 15))
            count = min(self.beacons, 100 if self.quick else 500)
            self.say("ours cycle", await subject.cycles("1.2.0", count, 32))
            self.say("ours cycle twice", await subject.cycles("1.3.0", count, 32, twice=True))
            if not self.quick:
                found = await subject.cycles("1.4.0", 200, 16, download=True)
                self.say("ours cycle download", found)
            self.say("ours rss", {"mb": round(server.rss / 1e6, 1)})
            if "Traceback" in server.log():
                self.failed = True
                self.notes.append(f"our server logged a failure: {server.log()[-500:]}")

    async def _openmv(self, folder: Path, image: Path) -> None:
        self._may("openmv-ota")
        subject = await asyncio.to_thread(Openmv, folder, image, 200 if self.quick else 1000)
        with subject.server as server:
            await subject.enrol()
            self.say("openmv-ota poll", await subject.polls(16, self.seconds))
            self.say("openmv-ota download", await subject.downloads(8, self.seconds))
            self.say("openmv-ota cycle", await subject.cycles(40 if self.quick else 500, 32))
            self.say("openmv-ota rss", {"mb": round(server.rss / 1e6, 1)})

    async def _goosebit(self, folder: Path, image: Path) -> None:
        self._may("goosebit")
        subject = await asyncio.to_thread(Goosebit, folder, image, 1000)
        with subject.server as server:
            self.say("goosebit poll", await subject.polls(16, self.seconds))
            self.say("goosebit download", await subject.downloads(8, self.seconds))
            self.say("goosebit cycle", await subject.cycles(40 if self.quick else 300, 32))
            if not self.quick:
                self.say("goosebit page", await asyncio.to_thread(subject.page))
            self.say("goosebit rss", {"mb": round(server.rss / 1e6, 1)})

    def _may(self, name: str) -> None:
        if not self.peers:
            raise Missing("peers were not asked for")
        if self.quick and not (environment.ROOT / name / ".installed").is_file():
            raise Missing(f"{name} is not installed yet, and --quick installs nothing")

    def _device(self) -> None:
        command = [sys.executable, "-m", "tests.bench.device", "--json"]
        done = subprocess.run(
            [*command, *(["--quick"] if self.quick else [])],
            capture_output=True,
            text=True,
            timeout=DEVICE_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip()[-500:])
        self.say("device", json.loads(done.stdout))

    # ---- the table

    def rows(self) -> list[Row]:
        """Return the lines of which something was measured."""
        found = [
            self._row("poll, update due, 16 connections", "req/s", True, 6000, "poll 16"),
            self._row("the same, p99", "ms", False, 15, "poll 16", "p99_ms"),
            self._row("poll, each on its own connection", "req/s", True, None, "poll fresh"),
            self._row("image download, 8 connections", "MB/s", True, 1000, "download", "mb_per_s"),
            self._row("update cycle, 32 at once", "updates/s", True, 600, "cycle", "updates_per_s"),
            self._row("the same, every report twice", "updates/s", True, None, "cycle twice"),
            self._row("counted of the updates made", "%", True, 100, "cycle", "counted"),
            self._row("256 readers at 20 kB/s", "KB each", False, 64, "slow readers"),
            self._row("memory after the above", "MB", False, 100, "rss", "mb"),
            self._row("first page of 1,000 beacons", "ms", False, 50, "page", "median_ms"),
        ]
        for row in found:
            for name in ("cycle", "cycle twice"):
                count = self.raw.get(f"ours {name}")
                if count and name == "cycle twice" and "twice" in row.measure:
                    row.note = f"counted {count['counted']} of {count['beacons']}"
        swarm = self.raw
        if one := swarm.get("brick"):
            values = {"ours": 100 * one["touched"] / one["beacons"]}
            note = f"{one['status']} ({one['reason']}), {one['touched']} of {one['beacons']}"
            found.append(Row("silent brick, touched", "%", False, 10, values, note))
        if one := swarm.get("large"):
            values = {"ours": 100 * one.get("server_cpu", float("nan"))}
            note = f"{one['beacons']} beacons, {one.get('polls_per_s')} polls/s, {one['rss_mb']} MB"
            found.append(Row("10,000 beacons at 60 s", "% of a core", False, 30, values, note))
        if one := swarm.get("cut"):
            values = {"ours": one["burst"]["p99_ms"]}
            note = (
                f"{one['burst']['count']} first polls, longest {one['burst']['max_ms']} ms,"
                f" books {'agree' if not one['mismatches'] else one['mismatches'][0]}"
            )
            found.append(Row("building back at once, p99", "ms", False, None, values, note))
        for one in swarm.get("device", []):
            values = {"ours": one["ours"]}
            found.append(
                Row(one["measure"], one["unit"], False, one["wanted"], values, one["reference"])
            )
        return [row for row in found if row.values]

    def _row(
        self, measure: str, unit: str, more: bool, wanted: float | None, what: str, key: str = ""
    ) -> Row:
        keys = {"cycle twice": "updates_per_s"}
        keys |= dict.fromkeys(("poll 16", "poll fresh"), "requests_per_s")
        key = key or keys.get(what, "kb_per_reader")
        row = Row(measure, unit, more, wanted)
        for name in table.SUBJECTS:
            found = self.raw.get(f"{name} {what}")
            if found is None and what in ("poll 16", "rss", "page"):  # the peers have one of each
                found = self.raw.get(f"{name} {what.split()[0]}")
            if found is None or key not in found:
                continue
            value = found[key]
            row.values[name] = 100 * value / found["beacons"] if key == "counted" else value
        return row


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    options.add_argument("--quick", action="store_true", help="a minute instead of minutes")
    options.add_argument("--only", default="", help=f"of {', '.join(PARTS)}, with commas")
    options.add_argument("--no-peers", action="store_true", help="ours and the floors alone")
    options.add_argument("--seconds", type=float, help="of each load")
    options.add_argument("--beacons", type=int, default=1000, help="registered with ours")
    options.add_argument(
        "--docs", action="store_true", help="put the table and the picture into docs/, too"
    )
    options.add_argument("--reports", type=Path, default=Path("reports"))
    chosen = options.parse_args()
    only = set(filter(None, chosen.only.split(",")))
    if unknown := only - set(PARTS):
        options.error(f"no such part: {', '.join(sorted(unknown))}")
    bench = Bench(chosen.quick, only, not chosen.no_peers, chosen.seconds, chosen.beacons)
    bench.run()
    rows = bench.rows()
    bench.notes.append(f"took {time.monotonic() - bench.began:.0f} s")
    table.show(rows, bench.notes)
    table.save(chosen.reports, rows, bench.raw, bench.notes)
    picture = chosen.reports / "bench.png"
    try:
        table.draw(picture, rows)
    except ImportError:
        print("no picture: matplotlib is not installed (pip install -e '.[bench]')")
    if chosen.docs:
        table.publish(Path("docs"), rows, bench.raw["machine"], picture)
    sys.exit(1 if bench.failed else 0)


if __name__ == "__main__":
    main()
