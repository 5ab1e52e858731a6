"""Cases of the power campaign: one or two power cuts each, one case for each state of the flash."""

import contextlib
import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from beacon_ota.campaign.power.recording import Recording, replay_operation
from beacon_ota.campaign.rig import builds, invariants
from beacon_ota.errors import UsageError
from beacon_ota.images import boards
from beacon_ota.virtual.flash.nor import SECTOR, Flash, PowerCut, PowerCutPoint

TORN = 3  # torn variants in NVS and otadata, whose entries decide


ANSWERED = "answered"


@dataclass(frozen=True)
class CutCase:
    """One power cut, or two."""

    scenario: str
    number: int  # of the operation; of the request for ``answered``
    when: str
    seed: int = 0
    ahead: int | None = None  # operations until the second cut
    again: str = ""
    again_seed: int = 0

    @property
    def name(self) -> str:
        """The complete case as text."""
        first = f"{self.scenario}:{self.number}:{self.when}:{self.seed}"
        if self.ahead is None:
            return first
        return f"{first}+{self.ahead}:{self.again}:{self.again_seed}"

    @classmethod
    def parse(cls, name: str) -> "CutCase":
        """Read a name (UsageError ``case_name``)."""
        try:
            first, _, second = name.partition("+")
            scenario, number, when, seed = first.split(":")
            case = cls(scenario, int(number), when, int(seed))
            if second:
                ahead, again, again_seed = second.split(":")
                case = cls(
                    scenario, case.number, when, case.seed, int(ahead), again, int(again_seed)
                )
            return case
        except ValueError:
            raise UsageError(
                "case_name", "no such case", found=name, expected="good-1:137:inside:0"
            ) from None


def distinct_cuts(recording: Recording) -> tuple[list[CutCase], dict[str, Any]]:
    """Return one case for each state that a cut can leave, and numbers for the report."""
    states: dict[str, CutCase] = {}
    count = 0
    for found, state in single_cuts(recording):
        count += 1
        states.setdefault(state, found)
    facts = {
        "uncut": recording.result,
        "operations": len(recording.ops),
        "requests": len(recording.states) - 1,
        "cuts": count,
        "states": len(states),
    }
    return list(states.values()), facts


def is_deciding(offset: int) -> bool:
    """Return whether a flash offset lies in NVS or otadata, whose entries decide."""
    table = boards.load_board(builds.DEVICE).table
    return any(part.offset <= offset < part.end for part in (table.nvs, table.otadata) if part)


def single_cuts(recording: Recording) -> Iterator[tuple[CutCase, str]]:
    """Yield every single cut of an update with the state that it leaves.

    Cases with the same state have the same future, so one of them is run. The state includes the
    number of granted trials, because that number is limited.
    """
    flash = Flash(recording.before)
    state = _FlashDigest(flash, {op.offset // SECTOR * SECTOR for op in recording.ops})
    name = recording.name
    place = boards.load_board(builds.DEVICE).otadata.offset
    granted = 0
    for number, op in enumerate(recording.ops):
        known = recording.state_index_at(number)
        yield CutCase(name, number, "before"), state.state_key(known, granted)
        sector = op.offset // SECTOR * SECTOR  # no operation crosses one
        content = flash.read(sector, SECTOR)
        for seed in range(TORN if is_deciding(op.offset) else 1):
            flash.cut = PowerCutPoint(flash.ops, "inside", seed)
            with contextlib.suppress(PowerCut):
                replay_operation(flash, op)
            flash.power_on()
            state.update_sector(sector)
            yield CutCase(name, number, "inside", seed), state.state_key(known, granted)
            flash.overwrite(sector, content)
        replay_operation(flash, op)
        state.update_sector(sector)
        granted += invariants.count_trial_boots([op], place)
        yield CutCase(name, number, "after"), state.state_key(known, granted)
        for at, known in enumerate(recording.states):
            if known.ops == number + 1:
                yield CutCase(name, at, ANSWERED), state.state_key(at, granted)


class _FlashDigest:
    """A digest of a flash's content that follows one sector at a time."""

    def __init__(self, flash: Flash, sectors: Iterable[int]):
        self._flash = flash
        self._sectors: dict[int, bytes] = {}
        for offset in sectors:
            self.update_sector(offset)

    def update_sector(self, offset: int) -> None:
        """Update the digest of a sector."""
        data = self._flash.read(offset, SECTOR)
        self._sectors[offset] = hashlib.blake2b(data, digest_size=16).digest()

    def state_key(self, known: int, granted: int) -> str:
        """Return a key of the content, the state of the orchestrator, and the granted trials."""
        whole = hashlib.blake2b(b"".join(self._sectors.values()), digest_size=16)
        return f"{whole.hexdigest()}:{known}:{granted}"


def choose_double_cuts(singles: Sequence[CutCase], count: int, seed: int) -> list[CutCase]:
    """Choose ``count`` cases with a second cut during the recovery."""
    chance = random.Random(seed)
    chosen = []
    for _ in range(count):
        one = chance.choice(singles)
        when = chance.choice(("before", "inside", "after"))
        ahead = int(chance.expovariate(1 / 25))  # the recovery's own writes come first
        chosen.append(
            CutCase(
                one.scenario, one.number, one.when, one.seed, ahead, when, chance.randrange(1000)
            )
        )
    return chosen
