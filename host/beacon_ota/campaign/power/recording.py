"""Records one whole update: its flash operations, and the states of the orchestrator.

After a power cut only the flash of a beacon remains. The state after a cut at any operation is the
initial flash content with the operations up to the cut, and the orchestrator as the requests up to
the cut have left it; no case has to run the update from the beginning.
"""

import base64
import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from beacon_ota.campaign.rig import builds
from beacon_ota.campaign.rig.beacon_rig import SCALE, Rig, scratch_folder, set_up_rig
from beacon_ota.campaign.rig.builds import ReleaseStore
from beacon_ota.campaign.rig.http_server import HttpRequest, refuse_index
from beacon_ota.errors import ReachError
from beacon_ota.virtual.flash.nor import CutMoment, Flash, FlashOperation, PowerCut, PowerCutPoint

DEADLINE = 120.0  # real seconds for a whole update
CUT_MOMENTS: tuple[CutMoment, ...] = ("before", "inside", "after")


@dataclass(frozen=True)
class OrchestratorState:
    """The state of the orchestrator after an answered request.

    Args:
        ops: flash operations that the beacon had begun by then.
        request: method and path, as text.
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
        states: of the orchestrator, the first one before any request.
        images: version → name in the store, of all releases that the orchestrator has.
        result: how the update ended when nothing failed.
    """

    name: str
    first: str
    second: str
    before: bytes
    ops: tuple[FlashOperation, ...]
    states: tuple[OrchestratorState, ...]
    images: dict[str, str]
    result: str

    def flash_after_cut(self, number: int, when: CutMoment, seed: int) -> bytes:
        """Return the flash content after a power cut at an operation."""
        flash = Flash(self.before)
        flash.cut = PowerCutPoint(number, when, seed)
        for op in self.ops:
            try:
                replay_operation(flash, op)
            except PowerCut:
                break
        return flash.snapshot()

    def state_index_at(self, number: int) -> int:
        """Return the index in ``states`` at a cut before, inside or after an operation.

        Requests before the start of the operation have been answered, later ones have not.
        """
        return max(at for at, known in enumerate(self.states) if known.ops <= number or not at)

    def save(self, path: Path) -> None:
        """Write the recording to a file."""
        data = asdict(self)
        data["before"] = _encode_bytes(self.before)
        data["ops"] = [[o.kind, o.offset, o.length, _encode_bytes(o.data)] for o in self.ops]
        data["states"] = [[k.ops, k.request, k.now, _encode_bytes(k.database)] for k in self.states]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data))

    @classmethod
    def load(cls, path: Path) -> "Recording":
        """Read a recording."""
        data: dict[str, Any] = json.loads(path.read_text())
        data["before"] = _decode_bytes(data["before"])
        data["ops"] = tuple(
            FlashOperation(number, kind, offset, length, _decode_bytes(text))
            for number, (kind, offset, length, text) in enumerate(data["ops"])
        )
        data["states"] = tuple(
            OrchestratorState(ops, request, now, _decode_bytes(text))
            for ops, request, now, text in data["states"]
        )
        return cls(**data)


def replay_operation(flash: Flash, op: FlashOperation) -> None:
    """Replay a recorded operation (PowerCut where the flash has one)."""
    if op.kind == "erase":
        flash.erase(op.offset, op.length)
    else:
        flash.program(op.offset, op.data)


def record_update(
    name: str,
    content: bytes,
    first: str,
    second: str,
    images: dict[str, str],
    shelf: ReleaseStore,
    *,
    index: bool = True,
    scale: float = SCALE,
) -> Recording:
    """Run an update and record it.

    Args:
        name: of the scenario.
        content: flash of the beacon before.
        first, second: versions before and after the update.
        images: version → name in the store, of all releases for the orchestrator.
        index: the orchestrator has block indexes; without, releases have manifests, which name
            their cores.

    Raises:
        ReachError: ``recording_stuck``: the update did not come to an end by itself.
    """
    with scratch_folder() as folder, set_up_rig(content, folder, scale=scale, record=True) as b:
        states: list[OrchestratorState] = []
        orchestrator = b.orchestrator
        orchestrator.register_beacon(builds.BEACON, builds.KEY, builds.DEVICE)
        for version, image in images.items():
            data = shelf.get(image)
            manifest = None if index else builds.describe_unsigned(data)
            orchestrator.upload_release(data, version, builds.DEVICE, manifest)
        if not index:
            orchestrator.http_server.choose_fault = refuse_index
        target = orchestrator.firmware_row(second)["id"]
        orchestrator.roll_out(target)

        async def answering(request: HttpRequest, _status: int) -> None:
            await _append_state(b, states, f"{request.method} {request.path}")

        orchestrator.run_in_loop(lambda: _append_state(b, states, ""))
        orchestrator.http_server.before_answer = answering
        b.beacon.power_on()
        done = b.wait_for(lambda: b.attempt_over(target), DEADLINE, "the end of the update")
        b.beacon.power_cut()
        ends = orchestrator.attempt_rows(target)
        if not done:
            raise ReachError("recording_stuck", f"{name}: {b.beacon.console[-2000:]}", found=ends)
        result = " ".join(str(ends[-1][field] or "") for field in ("result", "code")).strip()
        ops = tuple(b.flash.journal)
        return Recording(name, first, second, content, ops, tuple(states), images, result)


async def _append_state(b: Rig, states: list[OrchestratorState], request: str) -> None:
    database = await b.orchestrator.copy_database()
    states.append(
        OrchestratorState(b.flash.ops, request, b.orchestrator.service.clock.now(), database)
    )


def stretches(ops: tuple[FlashOperation, ...]) -> Iterator[tuple[str, int]]:
    """Yield (kind, count) of operations, for the report."""
    counts: dict[str, int] = {}
    for op in ops:
        counts[op.kind] = counts.get(op.kind, 0) + 1
    yield from sorted(counts.items())


def _encode_bytes(data: bytes) -> str:
    return base64.b85encode(zlib.compress(data, 1)).decode()


def _decode_bytes(text: str) -> bytes:
    return zlib.decompress(base64.b85decode(text))
