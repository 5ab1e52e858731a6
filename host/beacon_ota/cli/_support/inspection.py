"""Prints the report of ``image inspect`` for people."""

from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from beacon_ota.console import output
from beacon_ota.inspect.report import InspectionReport

_MARKS = {
    "good": output.fill_markup("[green]✓[/]"),
    "note": output.fill_markup("[blue]·[/]"),
    "warn": output.fill_markup("[bold yellow]![/]"),
    "bad": output.fill_markup("[bold red]✗[/]"),
}
_VALUES = "(values)"
_NAMED = ("files", "values", _VALUES)  # the keys below these are names, and are not relabelled
_ADDRESSES = ("offset", "app_offset")
_SIZES = (
    "size",
    "length",
    "core_length",
    "app_size",
    "payload",
    "flash_size",
    "slot_size",
    "flash",
)


def print_report(name: str, report: InspectionReport) -> None:
    """Print findings first, then the facts behind them."""
    output.print_markup(
        "[bold]{}[/]: [cyan]{}[/], {:,} bytes",
        name,
        report.kind,
        report.size,
        soft_wrap=True,
    )
    output.print_markup("SHA-256 {}\n", report.sha256, soft_wrap=True)
    for finding in report.findings:
        text = output.literal_text(finding.text)
        if finding.code == "insecure":
            text = output.fill_markup("[bold red]{}[/]", text)
        output.print_markup(" {} {}", _MARKS[finding.level], text, soft_wrap=True)
    output.print_markup("")
    for key, value in report.facts.items():
        _print_fact(key, value)


def _print_fact(key: str, value: object) -> None:
    if isinstance(value, list) and value and all(_is_flat(row) for row in value):
        output.console.print(_build_table(key, value))
    elif isinstance(value, dict | list):
        tree = Tree(output.fill_markup("[bold]{}[/]", _format_label(key)), guide_style="dim")
        _add_branches(tree, key, value)
        output.console.print(tree, highlight=False, soft_wrap=True)
    else:
        output.print_markup("[bold]{}[/] {}", _format_label(key), _format_value(key, value))


def _add_branches(tree: Tree, parent: str, value: object) -> None:
    rows = value.items() if isinstance(value, dict) else enumerate(value)  # type: ignore[arg-type]
    for key, found in rows:
        label = output.literal_text(key) if parent in _NAMED else _format_label(str(key))
        if isinstance(found, list) and found and all(_is_flat(row) for row in found):
            tree.add(_build_table(str(key), found))
        elif isinstance(found, dict | list):
            if isinstance(found, dict) and "partition" in found:
                label = output.literal_text(found["partition"])
            _add_branches(
                tree.add(output.fill_markup("[bold]{}[/]", label)),
                _VALUES if parent == "values" else str(key),
                found,
            )
        else:
            tree.add(output.fill_markup("{}: {}", label, _format_value(str(key), found)))


def _is_flat(row: object) -> bool:
    if not isinstance(row, dict):
        return False
    return not any(isinstance(value, dict | list) for value in row.values())


def _build_table(key: str, rows: list[dict[str, object]]) -> Table:
    table = Table(title=_format_label(key), title_justify="left", title_style="bold")
    for name in rows[0]:
        table.add_column(_format_label(name))
    for row in rows:
        table.add_row(*(_format_value(name, value) for name, value in row.items()))
    return table


def _format_label(key: str) -> Text:
    return output.literal_text(key.replace("_", " "))


def _format_value(key: str, value: object) -> str | Text:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and key in _ADDRESSES:
        return f"0x{value:X}"
    if isinstance(value, int) and key in _SIZES:
        return f"{value:,}"
    return output.literal_text(value)
