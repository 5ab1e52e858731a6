"""The table of docs/measures.md: which number answers which line, and how it is shown."""

import json
import os
import platform
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
SUBJECTS = ("goosebit", "openmv-ota", "floor", "nginx", "ours")


@dataclass
class Row:
    """One line.

    Attributes:
        measure: what is measured.
        unit: of the numbers.
        more: True when more is better.
        wanted: the bound for ours, None where there is none.
        values: by subject.
        note: what the numbers do not say.
    """

    measure: str
    unit: str
    more: bool
    wanted: float | None
    values: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours against the better of the peers: above 1 is better, whatever is counted."""
        peers = [self.values[name] for name in SUBJECTS[:2] if name in self.values]
        if not peers or "ours" not in self.values:
            return None
        ours, best = self.values["ours"], max(peers) if self.more else min(peers)
        if not ours or not best:
            return None
        return round(ours / best if self.more else best / ours, 2)


def machine() -> dict[str, Any]:
    """Return what it was measured on."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def number(value: float | None, unit: str = "") -> str:
    """Return a number for people."""
    if value is None:
        return "–"
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.3g}"
    return f"{text} {unit}".strip()


def wanted(row: Row) -> str:
    """Return the bound with its sign."""
    if row.wanted is None:
        return ""
    return f"{'≥' if row.more else '≤'} {number(row.wanted)}"


def show(rows: list[Row], notes: list[str]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.width = max(console.width, 140)
    table = Table("measure", "unit", *SUBJECTS, "wanted", "ours : best peer", title="bench")
    for row in rows:
        cells = [number(row.values.get(name)) for name in SUBJECTS]
        ratio = "" if row.ratio is None else f"{number(row.ratio)} ×"
        table.add_row(row.measure, row.unit, *cells, wanted(row), ratio)
    console.print(table)
    for line in [*(f"{row.measure}: {row.note}" for row in rows if row.note), *notes]:
        console.print(f"  {line}", highlight=False, markup=False)


def markdown(rows: list[Row]) -> str:
    """Return the table as it stands in docs/measures.md."""
    lines = [
        "| measure | " + " | ".join(SUBJECTS) + " | wanted | ours : best peer |",
        "|---|" + "---|" * (len(SUBJECTS) + 2),
    ]
    for row in rows:
        cells = [number(row.values.get(name)) for name in SUBJECTS]
        ratio = "" if row.ratio is None else f"{number(row.ratio)} ×"
        what = f"{row.measure}, {row.unit}" if row.unit else row.measure
        lines.append(f"| {what} | " + " | ".join(cells) + f" | {wanted(row)} | {ratio} |")
    return "\n".join(lines) + "\n"


def save(folder: Path, rows: list[Row], raw: dict[str, Any], notes: list[str]) -> None:
    """Write bench.json and bench.md."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "machine": raw.get("machine"),
        "rows": [{**asdict(row), "ratio": row.ratio} for row in rows],
        "notes": notes,
        "raw": raw,
    }
    (folder / "bench.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "bench.md").write_text(markdown(rows))


def publish(docs: Path, rows: list[Row], where: dict[str, Any], picture: Path) -> None:
    """Put the table into docs/measures.md, between its marks, and the picture beside it."""
    page = docs / "measures.md"
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no place for the table")
    said = (
        f"{where['at'][:10]}, {where['cores']} cores, Python {where['python']},"
        f" load {where['load']} before and {where['load_after']} after.\n\n"
    )
    notes = "".join(f"* {row.measure}: {row.note}\n" for row in rows if row.note)
    table = markdown(rows) + ("\n" + notes if notes else "")
    page.write_text(f"{before}{begin}\n{said}{table}{end}{after}")
    if picture.is_file():
        (docs / "img" / "bench.png").write_bytes(picture.read_bytes())


def draw(file: Path, rows: list[Row]) -> None:
    """Draw the lines in which there is a peer: how many times better ours is.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib  # pyright: ignore[reportMissingImports]

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt  # pyright: ignore[reportMissingImports]

    shown = [row for row in rows if row.ratio is not None][::-1]
    if not shown:
        return
    figure, axes = plt.subplots(figsize=(9, 0.55 * len(shown) + 1.6), dpi=110)
    height = 0.8 / 3
    for index, (name, colour) in enumerate(
        zip(("goosebit", "openmv-ota", "ours"), ("#b8bcc4", "#7f8794", "#1668c7"), strict=True)
    ):
        places, lengths = [], []
        for line, row in enumerate(shown):
            value = row.values.get(name)
            if value:
                ours = row.values["ours"]
                places.append(line - (index - 1) * height)
                lengths.append(value / ours if row.more else ours / value)
        axes.barh(places, lengths, height * 0.9, label=name, color=colour)
    axes.set_yticks(range(len(shown)), [row.measure for row in shown])
    axes.set_xscale("log")
    axes.axvline(1.0, color="#1668c7", linewidth=0.8)
    axes.set_xlabel("ours = 1, longer is better")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(file)
    plt.close(figure)
