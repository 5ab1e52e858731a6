"""The fault matrix: faults of an update in four dimensions, and the outcomes that must follow.

The module is pure. Expected outcomes follow from rules: of the faults of a case, the first one that
an attempt meets ends the attempt.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

OK = "ok"
AttemptEnd = tuple[str, str, str]  # result, stage, code; the last two "" for a success


@dataclass(frozen=True)
class FaultValue:
    """One fault.

    Args:
        name: in the names of cases.
        ends: stage and code under which it ends an attempt; "" when an attempt survives it.
        late: the fault is met only after the write of the sector that may fail.
        early: the fault is met before the download.
        blind: the beacon can store nothing while the fault lasts.
        forgiven: the image may not be at fault when its trial fails like this: it is tried again.
        rescued: the image fails after its trial, and stage 0 notices.
    """

    name: str
    ends: str = ""
    late: bool = False
    early: bool = False
    blind: bool = False
    forgiven: bool = False
    rescued: bool = False


NETWORK = (
    FaultValue(OK),
    FaultValue("reset"),  # the connection is reset at a byte
    FaultValue("stall"),  # it goes silent
    FaultValue("slow"),
    FaultValue("loss"),
    FaultValue("wifi-off"),  # WiFi is lost while flash is written, and comes back
    FaultValue(
        "names-gone"
    ),  # from the offer on, until the attempt is over: addresses are remembered
    FaultValue("wrong-network", "download/timeout"),  # the password was changed
)
SERVER = (
    FaultValue(OK),
    FaultValue("restart"),  # of the orchestrator, in the middle of the download
    FaultValue("404", "download/http"),
    FaultValue("500", "download/http"),
    FaultValue("503", "download/http"),  # with Retry-After
    FaultValue("short", "download/truncated"),  # 200, and closed before the first byte
    FaultValue("long", "download/http"),
    FaultValue("lie", "download/http"),  # Content-Length says more than there is
    FaultValue("other", "verify/checksum", late=True),  # as many other bytes
    FaultValue("etag"),  # a proxy has changed it; the download breaks off once
    # A stranger answers at the address of the orchestrator, without its signature, every time in
    # another way: to the first polls, downloads, reports before the reboot, final reports, or all
    # through a trial. No such answer ends an attempt.
    FaultValue("foreign-poll"),
    FaultValue("foreign-download"),
    FaultValue("foreign-verifying"),
    FaultValue("foreign-trial"),
    FaultValue("foreign-final"),
)
FLASH = (
    FaultValue(OK),
    FaultValue("erase", "flash/erase"),
    FaultValue("program", "flash/write"),
    FaultValue("stuck", "flash/readback"),
    FaultValue("flip", "flash/readback"),  # bits read otherwise than they were written
    # NVS, from before the first boot on: full; or refusing every change.
    FaultValue("nvs-full", "flash/write", early=True, blind=True),
    FaultValue("nvs-worn", "flash/write", early=True, blind=True),
    FaultValue("nvs-fills", blind=True),  # full from the first trial boot on
)
IMAGE = (
    FaultValue(OK),
    FaultValue("import", "boot/crash"),
    FaultValue("task", "boot/crash"),
    FaultValue("hang", "boot/watchdog"),
    FaultValue("hang-fed", "boot/crash"),  # the trial times out; the reset does not name the image
    FaultValue("self-test", "boot/self_test"),
    FaultValue("offline", "boot/self_test", forgiven=True),  # or the access point was away
    FaultValue("memory", "boot/crash"),
    FaultValue("resets", "boot/crash"),
    FaultValue("valid-then-dies", "boot/crash", rescued=True),
)
DIMENSIONS: Mapping[str, Sequence[FaultValue]] = {
    "network": NETWORK,
    "server": SERVER,
    "flash": FLASH,
    "image": IMAGE,
}
ATTEMPTS = 3  # that the campaign's plan grants


@dataclass(frozen=True)
class FaultCase:
    """One case: a value of each dimension."""

    network: FaultValue
    server: FaultValue
    flash: FaultValue
    image: FaultValue

    @property
    def name(self) -> str:
        """The name of the case: the names of its values, joined by ``+``."""
        return "+".join(value.name for value in self.values)

    @property
    def values(self) -> tuple[FaultValue, ...]:
        """The values in the order of the dimensions."""
        return (self.network, self.server, self.flash, self.image)

    @classmethod
    def parse(cls, name: str) -> "FaultCase":
        """Read a name (ValueError, KeyError)."""
        found = [
            {value.name: value for value in values}[word]
            for word, values in zip(name.split("+"), DIMENSIONS.values(), strict=True)
        ]
        return cls(*found)


def expected_ends(mix: FaultCase) -> list[AttemptEnd]:
    """Return the expected ends of the attempts of a case, in order.

    Faults outside of the image act on the first attempt only; the next attempt, the documented
    retry, meets none. A slot whose flash failed stays given up until a power cut. An image that
    failed its trial is not offered again, with two exceptions: something else may have been at
    fault; or NVS did not store the result of the trial, so that only the last reset is known, and
    unless that was the watchdog the image has one more trial.
    """
    ends = _ends_before_trial(mix)
    if not mix.image.ends:
        return [*ends, ("success", "", "")]
    stage, _, code = mix.image.ends.partition("/")
    back: AttemptEnd = ("rolled_back", stage, code)
    tried = [back] * (ATTEMPTS if mix.image.forgiven else 1)
    silent = mix.flash.blind and not ends and not mix.image.rescued
    if silent and code != "watchdog":
        ends = [("rolled_back", "boot", "not_booted")]
    return [*ends, *tried][:ATTEMPTS]


def first_end_unjournaled(mix: FaultCase) -> bool:
    """Return whether the journal may lack the first end, because NVS stored nothing then."""
    return mix.flash.blind and (mix.flash.early or not _ends_before_trial(mix))


def _ends_before_trial(mix: FaultCase) -> list[AttemptEnd]:
    """Return the ends of attempts before the trial of the image."""
    ends: list[AttemptEnd] = []
    for value in (
        *((mix.flash,) if mix.flash.early else ()),
        mix.network,
        *((mix.server,) if not mix.server.late else ()),
        mix.flash,
        *((mix.server,) if mix.server.late else ()),
    ):
        if value.ends:
            ends.append(_failed_end(value.ends))
            if value is mix.flash and not value.early:
                ends.append(_failed_end("flash/no_slot"))
            break
    return ends


def _failed_end(word: str) -> AttemptEnd:
    stage, _, code = word.partition("/")
    return "failed", stage, code


def pairwise_cases(seed: int) -> list[FaultCase]:
    """Return cases in which every two values of different dimensions meet at least once.

    The choice is greedy: each case is the candidate that covers the most uncovered pairs, and all
    candidates contain one uncovered pair.
    """
    chance = random.Random(seed)
    names = list(DIMENSIONS)
    left = {
        ((a, one.name), (b, two.name))
        for a, b in combinations(names, 2)
        for one, two in product(DIMENSIONS[a], DIMENSIONS[b])
    }
    order = sorted(left)
    chance.shuffle(order)
    found = [FaultCase(*(values[0] for values in DIMENSIONS.values()))]
    left -= _covered_pairs(found[0])
    for pair in order:
        if pair in left:
            candidates = [_case_with_pair(pair, chance) for _ in range(40)]
            best = max(candidates, key=lambda mix: len(_covered_pairs(mix) & left))
            left -= _covered_pairs(best)
            found.append(best)
    return found


def _case_with_pair(pair: tuple, chance: random.Random) -> FaultCase:
    fixed = dict(pair)
    return FaultCase(
        *(
            next(value for value in values if value.name == fixed.get(name, value.name))
            if name in fixed
            else chance.choice(values)
            for name, values in DIMENSIONS.items()
        )
    )


def _covered_pairs(mix: FaultCase) -> set[tuple]:
    named = [(name, value.name) for name, value in zip(DIMENSIONS, mix.values, strict=True)]
    return set(combinations(named, 2))


def single_fault_cases() -> Iterator[FaultCase]:
    """Yield one case for each fault alone."""
    for name, values in DIMENSIONS.items():
        for value in values[1:]:
            rest = {other: found[0] for other, found in DIMENSIONS.items()}
            yield FaultCase(**{**rest, name: value})
