"""The fault matrix: what can go wrong with an update, in four dimensions, and what has to follow.

Pure. An outcome is not written down for each case but follows from rules: the first dimension
that ends an attempt names it, in the order in which an attempt meets them.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

OK = "ok"
AttemptEnd = tuple[str, str, str]  # result, stage, code; the last two "" for a success


@dataclass(frozen=True)
class FaultValue:
    """One thing that goes wrong.

    Args:
        name: of it.
        ends: stage and code under which it ends an attempt; "" when an attempt survives it.
        late: it is found out only after the sector that may fail was written.
        early: it is met before anything is downloaded.
        blind: while it lasts the beacon can write nothing down.
        forgiven: an image that fails its trial like this may not be to blame: it is tried again.
        rescued: it fails after its trial, and stage 0 finds it out.
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
    # A stranger answers at its address, without its signature, every time in another way: the first
    # times that a beacon asks for work, for the image, before it goes on, and with its last word;
    # all through a trial. None of it ends anything.
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
    # NVS, from before the first boot on: it is full; it takes no change at all.
    FaultValue("nvs-full", "flash/write", early=True, blind=True),
    FaultValue("nvs-worn", "flash/write", early=True, blind=True),
    FaultValue("nvs-fills", blind=True),  # it is full from the first trial boot on
)
IMAGE = (
    FaultValue(OK),
    FaultValue("import", "boot/crash"),
    FaultValue("task", "boot/crash"),
    FaultValue("hang", "boot/watchdog"),
    FaultValue("hang-fed", "boot/crash"),  # the trial's time is up; the reset names no culprit
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
    """One value of each dimension."""

    network: FaultValue
    server: FaultValue
    flash: FaultValue
    image: FaultValue

    @property
    def name(self) -> str:
        """All of it in one word."""
        return "+".join(value.name for value in self.values)

    @property
    def values(self) -> tuple[FaultValue, ...]:
        """In the order of the dimensions."""
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
    """Return how the attempts of a case have to end, one after the other.

    What goes wrong outside of the image goes wrong in the first attempt only: the next one, which
    is the documented retry, meets a sound world. A slot whose flash failed stays given up until
    the power was away. An image that failed its trial is not offered again, unless something else
    may have been to blame, or NVS did not take what the trial said: then only the last reset is
    known, and unless the watchdog was it the image has one more trial.
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
    """Tell whether the journal need not hold the first end: NVS took nothing then."""
    return mix.flash.blind and (mix.flash.early or not _ends_before_trial(mix))


def _ends_before_trial(mix: FaultCase) -> list[AttemptEnd]:
    """Return how attempts end before the image is tried."""
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

    Greedy: each case is the one of a number of candidates that covers the most pairs that are
    left, the first of them built around a pair that is.
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
    wanted = dict(pair)
    return FaultCase(
        *(
            next(value for value in values if value.name == wanted.get(name, value.name))
            if name in wanted
            else chance.choice(values)
            for name, values in DIMENSIONS.items()
        )
    )


def _covered_pairs(mix: FaultCase) -> set[tuple]:
    named = [(name, value.name) for name, value in zip(DIMENSIONS, mix.values, strict=True)]
    return set(combinations(named, 2))


def single_fault_cases() -> Iterator[FaultCase]:
    """Yield each fault on its own."""
    for name, values in DIMENSIONS.items():
        for value in values[1:]:
            rest = {other: found[0] for other, found in DIMENSIONS.items()}
            yield FaultCase(**{**rest, name: value})
