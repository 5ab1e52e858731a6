"""One whole update, recorded: what the flash did, and what the orchestrator knew meanwhile.

A power cut leaves a beacon nothing but its flash. So the state after a cut at any operation is
the flash content of the beginning with the operations up to there, and the orchestrator as the
requests up to there had left it; nobody has to run the beginning again.
"""

import base64
import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from beacon_ota.campaign.rig import builds
from beacon_ota.campaign.rig.beacon_rig import SCALE, Bench, bench, scratch
from beacon_ota.campaign.rig.builds import Shelf
from beacon_ota.campaign.rig.http_server import Request
from beacon_ota.errors import ReachError
from beacon_ota.virtual.flash.nor import Cut, Flash, Op, PowerCut, When

DEADLINE = 120.0  # real seconds for a whole update
WHENS: tuple[When, ...] = ("before", "inside", "after")


@dataclass(frozen=True)
class Known:
    """What the orchestrator knew when it had answered a request.

    Args:
        ops: flash operations that the beacon had begun by then.
        request: method and path, for people.
        now: its clock, UTC seconds.
        database: its database.
    """

    ops: int
    request: str
    now: float
    database: bytes


@dataclass(frozen=True)
class Recording:
    """An update from ``first`` to ``second``.

    Args:
        name: of the scenario.
        before: flash content when it began.
        ops: the flash operations, numbered from 0.
        known: the orchestrator's states, the first from before any request.
        images: version → name on the shelf, of all releases that the orchestrator has.
        result: how the update ended when nothing failed.
    """

    name: str
    first: str
    second: str
    before: bytes
    ops: tuple[Op, ...]
    known: tuple[Known, ...]
    images: dict[str, str]
    result: str

    def flash(self, number: int, when: When, seed: int) -> bytes:
        """Return the flash content after a power cut at an operation."""
        flash = Flash(self.before)
        flash.cut = Cut(number, when, seed)
        for op in self.ops:
            try:
                play(flash, op)
            except PowerCut:
                break
        return flash.snapshot()

    def known_at(self, number: int) -> int:
        """Return which of ``known`` holds at a cut before, inside or after an operation.

        Every request that came before the operation began was heard, and none that came after it.
        """
        return max(at for at, known in enumerate(self.known) if known.ops <= number or not at)

    def save(self, path: Path) -> None:
        """Write it to a file."""
        data = asdict(self)
        data["before"] = _text(self.before)
        data["ops"] = [[o.kind, o.offset, o.length, _text(o.data)] for o in self.ops]
        data["known"] = [[k.ops, k.request, k.now, _text(k.database)] for k in self.known]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data))

    @classmethod
    def load(cls, path: Path) -> "Recording":
        """Read it back."""
        data: dict[str, Any] = json.loads(path.read_text())
        data["before"] = _bytes(data["before"])
        data["ops"] = tuple(
            Op(number, kind, offset, length, _bytes(text))
            for number, (kind, offset, length, text) in enumerate(data["ops"])
        )
        data["known"] = tuple(
            Known(ops, request, now, _bytes(text)) for ops, request, now, text in data["known"]
        )
        return cls(**data)


def play(flash: Flash, op: Op) -> None:
    """Do a recorded operation (PowerCut where the flash has one)."""
    if op.kind == "erase":
        flash.erase(op.offset, op.length)
    else:
        flash.program(op.offset, op.data)


def record(
    name: str,
    content: bytes,
    first: str,
    second: str,
    images: dict[str, str],
    shelf: Shelf,
    *,
    scale: float = SCALE,
) -> Recording:
    """Run an update and record it.

    Args:
        name: of the scenario.
        content: flash of the beacon before.
        first, second: versions that it runs and is to get.
        images: version → name on the shelf, of all releases that the orchestrator is to have.

    Raises:
        ReachError: ``recording_stuck``: the update did not come to an end by itself.
    """
    with scratch() as folder, bench(content, folder, scale=scale, record=True) as b:
        states: list[Known] = []
        orchestrator = b.orchestrator
        orchestrator.register(builds.BEACON, builds.KEY, builds.DEVICE)
        for version, image in images.items():
            orchestrator.upload(shelf.get(image), version, builds.DEVICE)
        target = orchestrator.firmware(second)["id"]
        orchestrator.roll_out(target)

        async def answering(request: Request, _status: int) -> None:
            await _remember(b, states, f"{request.method} {request.path}")

        orchestrator.call(lambda: _remember(b, states, ""))
        orchestrator.front.answering = answering
        b.beacon.power_on()
        done = b.wait(lambda: b.over(target), DEADLINE, "the end of the update")
        b.beacon.power_cut()
        ends = orchestrator.attempts(target)
        if not done:
            raise ReachError("recording_stuck", f"{name}: {b.beacon.console[-2000:]}", found=ends)
        result = " ".join(str(ends[-1][field] or "") for field in ("result", "code")).strip()
        ops = tuple(b.flash.journal)
        return Recording(name, first, second, content, ops, tuple(states), images, result)


async def _remember(b: Bench, states: list[Known], request: str) -> None:
    database = await b.orchestrator.copy()
    states.append(Known(b.flash.ops, request, b.orchestrator.service.clock.now(), database))


def stretches(ops: tuple[Op, ...]) -> Iterator[tuple[str, int]]:
    """Yield (kind, count) of operations, for the report."""
    counts: dict[str, int] = {}
    for op in ops:
        counts[op.kind] = counts.get(op.kind, 0) + 1
    yield from sorted(counts.items())


def _text(data: bytes) -> str:
    return base64.b85encode(zlib.compress(data, 1)).decode()


def _bytes(text: str) -> bytes:
    return zlib.decompress(base64.b85decode(text))
