"""What a release moves, over this repository's own history: ``python -m tests.bench.layouts``.

Every version of ``firmware/app`` on the first parents of HEAD is compiled and laid out, and the
sectors are counted in which the app filesystems of two versions differ, one and five commits apart.
Commits that change nothing in the compiled app are left out. Two layouts are compared: littlefs's
own (one file behind the other, as releases were built before), and the one that is made like the
version before. Of late the firmware's names were changed everywhere, which no layout can help: the
pairs before that are counted by themselves.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from beacon_ota.errors import InputError
from beacon_ota.images import appfs, littlefs_writer
from beacon_ota.images.app_folder import HOST_ONLY
from beacon_ota.images.app_layout import SECTOR, read_earlier

ROOT = Path(__file__).resolve().parents[2]
APP = "firmware/app/"
RENAMES = "9f24cb83"  # the first of the commits that rename nearly everything
_ALWAYS = ("main.py", "ota/agent.py")  # an app without these is no release yet
_KEYS = b'{"keys":{"0123456789abcdef":"' + b"ab" * 384 + b'"},"threshold":1}'
_OLD_BLOCK = 512

Files = dict[str, bytes]
Layout = Callable[[Files, bytes | None], bytes]


@dataclass(frozen=True)
class Cost:
    """Sectors that differ, for pairs of versions.

    Attributes:
        layout: which.
        apart: commits between the two versions.
        pairs: how many pairs there are.
        median, mean: sectors.
        before: the median of the pairs before the renaming.
        after: the median of the others; None without any.
        sectors: of the newest image.
    """

    layout: str
    apart: int
    pairs: int
    median: float
    mean: float
    before: float
    after: float | None
    sectors: int


def read_history() -> tuple[list[Files], int]:
    """Return the files of every version of the app, oldest first, and the first renamed one.

    Raises:
        InputError: ``no_history``: this is no checkout, or one without its past.
    """
    commits = _git("log", "--reverse", "--first-parent", "--format=%H", "HEAD", "--", APP).split()
    trees = [_list_sources(commit) for commit in commits]
    blobs = sorted({pair for tree in trees for pair in tree.items()})
    compiled = {pair: _compile_blob(*pair) for pair in blobs}
    versions: list[Files] = []
    renamed = 0
    seen: Files | None = None
    for commit, tree in zip(commits, trees, strict=True):
        if commit.startswith(RENAMES):
            renamed = len(versions)
        files = {path: data for pair in tree.items() for path, data in compiled[pair].items()}
        if all(path in tree for path in _ALWAYS) and files != seen:
            versions.append(_add_info(files, len(versions)))
            seen = files
    if len(versions) < 12:
        raise InputError("no_history", "this checkout has no history of the app", found=ROOT)
    return versions, renamed or len(versions)


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
    )
    return done.stdout if done.returncode == 0 else ""


def _list_sources(commit: str) -> dict[str, str]:
    found = {}
    for line in _git("ls-tree", "-r", commit, APP).splitlines():
        blob, _, path = line.partition("\t")
        name = path.removeprefix(APP)
        if name.endswith(".py") and name not in HOST_ONLY:
            found[name] = blob.split()[2]
    return found


def _compile_blob(path: str, blob: str) -> Files:
    return appfs.compile_sources({path: _git("cat-file", "blob", blob).encode()})


def _add_info(files: Files, number: int) -> Files:
    info = appfs.AppInfo(f"1.{number}.0", "esp32c3", "cd" * 32, 1_700_000_000 + 1000 * number)
    return {**files, appfs.INFO: info.pack(), appfs.KEYS: _KEYS}


def lay_out_by_littlefs(files: Files, _before: bytes | None) -> bytes:
    """Return an app filesystem as releases had it before layouts were kept."""
    return littlefs_writer.build_filesystem(files, _OLD_BLOCK)


def lay_out_like(files: Files, before: bytes | None) -> bytes:
    """Return an app filesystem as ``image build --like`` makes it."""
    return appfs.pack_app(files, None if before is None else read_earlier(before))


def count_differing(before: bytes, after: bytes) -> int:
    """Return the sectors of ``after`` that ``before`` does not have in the same place."""
    return sum(
        before[at : at + SECTOR] != after[at : at + SECTOR] for at in range(0, len(after), SECTOR)
    )


def measure(
    versions: Sequence[Files], renamed: int, apart: int, name: str, lay_out: Layout
) -> Cost:
    """Count what releases cost that are ``apart`` commits from each other.

    Each release is laid out like the one that beacons run, the one so many commits before it.
    """
    images: dict[int, bytes] = {}
    costs: dict[int, int] = {}
    for number in range(len(versions)):
        before = images.get(number - apart)
        images[number] = lay_out(versions[number], before)
        if before is not None:
            costs[number] = count_differing(before, images[number])
    early = [cost for number, cost in costs.items() if number < renamed]
    late = [cost for number, cost in costs.items() if number >= renamed]
    return Cost(
        name,
        apart,
        len(costs),
        statistics.median(costs.values()),
        round(statistics.mean(costs.values()), 1),
        statistics.median(early),
        statistics.median(late) if late else None,
        len(images[len(versions) - 1]) // SECTOR,
    )


def measure_all() -> list[Cost]:
    """Return both layouts, one and five commits apart (InputError ``no_history``)."""
    versions, renamed = read_history()
    return [
        measure(versions, renamed, apart, name, lay_out)
        for apart in (1, 5)
        for name, lay_out in (("littlefs", lay_out_by_littlefs), ("like", lay_out_like))
    ]


def main() -> None:
    """Print the table, or JSON: a list of objects with the fields of :class:`Cost`."""
    options = argparse.ArgumentParser(prog="python -m tests.bench.layouts")
    options.add_argument("--json", action="store_true", help="rows as JSON")
    chosen = options.parse_args()
    try:
        costs = measure_all()
    except InputError as error:
        sys.exit(str(error))
    if chosen.json:
        print(json.dumps([asdict(cost) for cost in costs], indent=1))
        return
    print("layout    apart  pairs  median  mean  before the renaming  since  image")
    for one in costs:
        since = "–" if one.after is None else f"{one.after:g}"
        print(
            f"{one.layout:9} {one.apart:5} {one.pairs:6} {one.median:7g} {one.mean:5g}"
            f" {one.before:20g} {since:>6} {one.sectors:6}"
        )


if __name__ == "__main__":
    main()
