"""Where a poll spends its time: ``python -m tests.bench.flame docs/img/hot-path.svg``.

Samples our server while it answers polls (py-spy), and draws what the event
loop's thread was doing: a bar is a function, as wide as its share; what it called lies below.
"""

import argparse
import asyncio
import html
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from tests.bench import orchestrator_subject

RATE = 500  # samples per second
WIDTH, ROW, LEAST = 1200, 17, 0.004  # pixels, pixels, share below which nothing is drawn
_OWN = "beacon_ota/"


@dataclass
class Frame:
    """A function, with what it called."""

    name: str
    file: str
    count: int = 0
    below: dict[str, "Frame"] = field(default_factory=dict)


def grow(stacks: str, root_of: str) -> Frame:
    """Build the tree of the stacks (``a;b;c count``) that pass through ``root_of``."""
    root = Frame("all", "")
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        start = next((i for i, frame in enumerate(frames) if root_of in frame), None)
        if start is None:
            continue
        root.count += int(count)
        here = root
        for text in frames[start + 1 :]:
            match = re.fullmatch(r"(.*) \((.*?)(?::\d+)?\)", text)
            name, file = match.groups() if match else (text, "")
            here = here.below.setdefault(text, Frame(name.replace("<locals>.", ""), _short(file)))
            here.count += int(count)
    return root


def _short(file: str) -> str:
    """Return a file's name within its package."""
    parts = Path(file).parts
    names = ("beacon_ota", "uvicorn", "sqlalchemy", "starlette", "asyncio")
    start = next((i for i, part in enumerate(parts) if part in names), max(len(parts) - 1, 0))
    return "/".join(parts[start:])


def bars(root: Frame) -> Iterator[tuple[float, float, int, Frame]]:
    """Yield left edge, width (both as shares), depth and frame of what is wide enough."""
    todo = [(root, 0.0, 0)]
    while todo:
        frame, left, depth = todo.pop()
        yield left, frame.count / root.count, depth, frame
        for child in sorted(frame.below.values(), key=lambda one: one.name):
            if child.count / root.count >= LEAST:
                todo.append((child, left, depth + 1))
            left += child.count / root.count


def draw(root: Frame, title: str) -> str:
    """Return the picture."""
    found = list(bars(root))
    height = (max(depth for _, _, depth, _ in found) + 1) * ROW + 40
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="monospace" font-size="11"><rect width="{WIDTH}" height="{height}" '
        f'fill="#fff"/><text x="8" y="20" font-size="13">{html.escape(title)}</text>'
    ]
    for left, width, depth, frame in found:
        x, wide = left * WIDTH, width * WIDTH
        colour = "#7fb2ea" if frame.file.startswith(_OWN) else "#f2c48d"
        label = html.escape(frame.name[: int(wide / 6.7)]) if wide > 24 else ""
        full = html.escape(f"{frame.name} {frame.file} {width:.1%}")
        y = 30 + depth * ROW
        out.append(
            f'<g><title>{full}</title><rect x="{x:.1f}" y="{y}" width="{max(wide - 0.5, 0.5):.1f}" '
            f'height="{ROW - 1}" fill="{colour}"/>'
            + (f'<text x="{x + 3:.1f}" y="{y + 12}">{label}</text>' if label else "")
            + "</g>"
        )
    return "\n".join([*out, "</svg>"]) + "\n"


async def sample(
    tool: str, subject: orchestrator_subject.OrchestratorSubject, seconds: float, out: Path
) -> None:
    """Load the server with polls while it is being sampled."""
    command = [tool, "record", f"--pid={subject.server.process.pid}", f"--duration={int(seconds)}"]
    command += [f"--rate={RATE}", "--function", "--format=raw", f"--output={out}"]
    sampling = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    await subject.polls(16, seconds + 1)
    await asyncio.wait_for(sampling.wait(), 60)


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m tests.bench.flame")
    options.add_argument("picture", type=Path)
    options.add_argument("--seconds", type=float, default=15.0)
    chosen = options.parse_args()
    tool = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if tool is None:
        sys.exit("py-spy is not installed (pip install py-spy)")
    with (
        tempfile.TemporaryDirectory() as name,
        orchestrator_subject.start_orchestrator(Path(name)) as server,
    ):
        subject = orchestrator_subject.OrchestratorSubject(server, server.said["token"])
        stacks = Path(name) / "stacks"

        async def run() -> None:
            await subject.register(1000)
            subject.roll_out("1.1.0")
            await subject.offers(1000, 64)
            await sample(tool, subject, chosen.seconds, stacks)

        uvloop.run(run())
        root = grow(stacks.read_text(), "serve (beacon_ota/orchestrator/server/start.py")
    chosen.picture.parent.mkdir(parents=True, exist_ok=True)
    title = "a poll with an update due: the event loop's thread (blue: ours)"
    chosen.picture.write_text(draw(root, title))


if __name__ == "__main__":
    main()
