"""The live display: the fleet by building, the rollout by wave, the last messages."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from beacon_ota.console import output
from beacon_ota.provision.scan import Sighting

LINES = 7
PERIOD_S = 0.25
RECENT_S = 15.0  # seconds without an advertisement after which a beacon is drawn as silent
_COLOURS = ("blue", "green", "cyan", "yellow", "magenta")
_SILENT = ("··", "dim")
_SIGNS = {
    "new": ("◌ ", "white"),
    "locked": ("◌ ", "red"),
    "trial": ("▲ ", "yellow"),
    "rebooting": ("↻ ", "cyan"),
    "failed": ("✗ ", "red"),
}
_LEGEND = (
    ("◌ in its box", "white"),
    ("47 percent of an update", "cyan"),
    ("▲ on trial", "yellow"),
    ("✗ failed", "red"),
)


class Display:
    """A live display; :meth:`add_line` adds a message.

    Args:
        buildings: Bluetooth addresses of the beacons, by building.
        versions: of the releases, in the order of the colours.
        heard: newest sighting of each beacon, by address.
        plain: print only the messages, one by one.
    """

    def __init__(
        self,
        buildings: Mapping[str, Sequence[str]],
        versions: Sequence[str],
        heard: Callable[[], Mapping[str, Sighting]],
        *,
        plain: bool = False,
    ):
        self.rollout: dict[str, Any] | None = None
        self.title = "Beacon OTA"
        self._buildings = buildings
        self._colours = dict(zip(versions, _COLOURS, strict=False))
        self._heard = heard
        self._lines: deque[Text] = deque(maxlen=LINES)
        self._plain = plain
        self._begun = time.monotonic()
        self._live = Live(console=output.console, auto_refresh=False, transient=True)

    def __enter__(self) -> "Display":
        if not self._plain:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.refresh()
        self._live.stop()

    def add_line(self, text: str, *values: object) -> None:
        """Add a line: a template in rich markup, and what is put into it."""
        told = output.fill_markup(text, *values)
        line = output.fill_markup("[dim]{:6.1f} s[/]  {}", time.monotonic() - self._begun, told)
        self._lines.append(line)
        if self._plain:
            output.console.print(line, soft_wrap=True)
        self.refresh()

    def wait_until(
        self, ready: Callable[[], bool], timeout: float, step: Callable[[], None] = lambda: None
    ) -> bool:
        """Refresh the display until ``ready()``; return False at the timeout (seconds)."""
        deadline = time.monotonic() + timeout
        while not ready():
            if time.monotonic() > deadline:
                return False
            step()
            self.refresh()
            time.sleep(PERIOD_S)
        return True

    def refresh(self) -> None:
        """Draw the present state."""
        if self._plain:
            return
        parts: list[RenderableType] = [self._render_fleet()]
        if self.rollout is not None:
            parts.append(_render_waves(self.rollout))
        parts.extend(self._lines)
        self._live.update(Panel(Group(*parts), title=self.title), refresh=True)

    def _render_fleet(self) -> RenderableType:
        heard = self._heard()
        table = Table.grid(padding=(0, 2))
        for building, addresses in self._buildings.items():
            row = Text()
            for address in addresses:
                row.append(*self._beacon_sign(heard.get(address)))
                row.append(" ")
            table.add_row(Text(building, style="bold"), row)
        legend = Text()
        for version, colour in self._colours.items():
            legend.append(f"■ {version}  ", style=colour)
        for text, style in _LEGEND:
            legend.append(text + "  ", style=style)
        table.add_row("", legend)
        return table

    def _beacon_sign(self, beacon: Sighting | None) -> tuple[str, str]:
        """Return two characters and a style for a beacon, by its advertisement."""
        if beacon is None or time.monotonic() - beacon.seen > RECENT_S:
            return _SILENT
        state = beacon.state
        if state == "updating":
            return f"{min(beacon.progress or 0, 99):02d}", "cyan"
        return _SIGNS.get(state) or ("■ ", self._colours.get(beacon.version, "white"))


def _render_waves(rollout: Mapping[str, Any]) -> RenderableType:
    why = f", {rollout['reason']}" if rollout["status"] == "halted" else ""
    status = f"rollout of {rollout['version']}: {rollout['status']}{why}"
    table = Table(title=status, title_style="bold")
    for name in ("wave", "stage", "share", "healthy", "under way", "failed", "waits for"):
        table.add_column(name)
    for wave in rollout["waves"]:
        counts = wave.get("counts") or ()
        stage = "not open" if wave["stage"] < 0 else f"{wave['stage'] + 1}/{wave['stages']}"
        waits = wave.get("waits_for") or {}
        table.add_row(
            wave["name"],
            "served" if wave["ended_at"] else stage,
            f"{wave['share']:.0%}",
            *(str(sum(cell[name] for cell in counts)) for name in ("healthy", "open", "failed")),
            str(waits.get("detail", "")),
        )
    return table
