"""What a campaign found, as JSON for machines and as one HTML page for people."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from beacon_ota.campaign.runner import CaseOutcome

JSON, HTML = "report.json", "report.html"


@dataclass(frozen=True)
class CampaignResult:
    """A campaign that was run.

    Args:
        name: of the campaign.
        options: that were given, by name.
        facts: what it says of all its cases.
        outcomes: of the cases, in order.
        seconds: it took.
        jobs: worker processes.
        notes: what was left out, and why.
    """

    name: str
    options: Mapping[str, Any]
    facts: Mapping[str, Any]
    outcomes: Sequence[CaseOutcome]
    seconds: float
    jobs: int
    notes: Sequence[str] = field(default_factory=list)

    @property
    def wrong(self) -> list[CaseOutcome]:
        """The outcomes that must not be."""
        return [outcome for outcome in self.outcomes if outcome.wrong]

    def repro_command(self, case: str) -> str:
        """Return the command that runs one case again."""
        return f"beacon-ota campaign {self.name} --seed {self.options['seed']} --case '{case}'"

    def as_document(self) -> dict[str, Any]:
        """Return everything, with the outcomes counted by class."""
        return {
            "campaign": self.name,
            "passed": not self.wrong,
            "options": dict(self.options),
            "jobs": self.jobs,
            "seconds": round(self.seconds, 1),
            "cases": len(self.outcomes),
            "again": sum(bool(outcome.first) for outcome in self.outcomes),
            "facts": dict(self.facts),
            "notes": list(self.notes),
            "classes": count_classes(self.outcomes),
            "wrong": [
                {**asdict(outcome), "repro": self.repro_command(outcome.name)}
                for outcome in self.wrong
            ],
            "measured": [
                {"case": outcome.name, **outcome.facts}
                for outcome in self.outcomes
                if len(self.outcomes) <= 40 and outcome.facts
            ],
        }


def count_classes(outcomes: Iterable[CaseOutcome]) -> list[dict[str, Any]]:
    """Count outcomes by group and class."""
    counts: dict[tuple[str, str], list[int]] = {}
    for outcome in outcomes:
        count = counts.setdefault((outcome.group, outcome.word), [0, 0])
        count[0] += 1
        count[1] += bool(outcome.wrong)
    return [
        {"group": group, "outcome": word, "cases": cases, "wrong": wrong}
        for (group, word), (cases, wrong) in sorted(counts.items())
    ]


def write_reports(folder: Path, results: Sequence[CampaignResult], began: str) -> Path:
    """Write both reports into a folder; return the page's path.

    Args:
        began: when the campaigns began, for people.
    """
    documents = [result.as_document() for result in results]
    whole = {"began": began, "passed": all(doc["passed"] for doc in documents)}
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**whole, "campaigns": documents}, indent=1)
    (folder / JSON).write_text(text + "\n")
    (folder / HTML).write_text(render_page(documents, began))
    return folder / HTML


def render_page(documents: Sequence[Mapping[str, Any]], began: str) -> str:
    """Return one page that needs nothing else."""
    cases = sum(doc["cases"] for doc in documents)
    wrong = sum(len(doc["wrong"]) for doc in documents)
    verdict = f"{wrong} of {cases} cases went wrong" if wrong else f"all {cases} cases passed"
    body = "".join(_render_campaign(doc) for doc in documents)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Campaign: {verdict}</title><style>{_STYLE}</style>"
        f'<h1>Failure campaign</h1><p class="{"bad" if wrong else "good"}">{verdict}'
        f"<span>begun {escape(began)}</span></p>{body}</html>\n"
    )


def _render_campaign(doc: Mapping[str, Any]) -> str:
    options = ", ".join(f"{name} {value}" for name, value in doc["options"].items())
    parts = [
        f"<h2>{escape(doc['campaign'])}</h2>",
        f"<p>{doc['cases']} cases in {_format_duration(doc['seconds'])}"
        f" on {doc['jobs'] or 1} processes; {escape(options)}.",
        f" {doc['again']} were run a second time, more slowly: the machine was busy.</p>"
        if doc["again"]
        else "</p>",
        *(f"<p>{escape(note)}</p>" for note in doc["notes"]),
        _render_facts(doc["facts"]),
        _render_table(doc["classes"], ("group", "outcome", "cases", "wrong")),
    ]
    if doc["measured"]:
        parts += [
            "<h3>Measured</h3>",
            _render_table(doc["measured"], _column_names(doc["measured"])),
        ]
    for one in doc["wrong"]:
        found = "".join(f"<li>{escape(str(line))}</li>" for line in one["wrong"])
        parts.append(
            f"<section><b>{escape(one['name'])}</b> {escape(one['word'])}<ul>{found}</ul>"
            f"<pre>{escape(one['repro'])}</pre></section>"
        )
    return "".join(parts)


def _render_facts(facts: Mapping[str, Any]) -> str:
    rows = [{"": name, **value} for name, value in facts.items() if isinstance(value, Mapping)]
    plain = [
        f"<li>{escape(name)}: {escape(str(value))}</li>"
        for name, value in facts.items()
        if not isinstance(value, Mapping)
    ]
    listed = f"<ul>{''.join(plain)}</ul>" if plain else ""
    return (_render_table(rows, _column_names(rows)) if rows else "") + listed


def _column_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _render_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(
        f"<tr{' class=bad' if row.get('wrong') else ''}>"
        + "".join(_render_cell(row.get(name, "")) for name in columns)
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _render_cell(value: Any) -> str:
    kind = " class=n" if isinstance(value, int | float) else ""
    return f"<td{kind}>{escape(str(value))}</td>"


def _format_duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


_STYLE = """
:root{color-scheme:light dark;--line:light-dark(#dce1e7,#2a343f);--bad:light-dark(#fdeceb,#3a1a18)}
body{font:14px/1.5 system-ui,sans-serif;max-width:1000px;margin:24px auto;padding:0 16px}
h1{font-size:20px}h2{font-size:16px;margin:32px 0 4px}h3{font-size:14px}
table{border-collapse:collapse;margin:8px 0;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:3px 12px 3px 0;border-bottom:1px solid var(--line)}
.n{text-align:right}tr.bad,section,p.bad{background:var(--bad)}
section{padding:8px 12px;margin:8px 0}pre{overflow-x:auto;margin:4px 0}
p.good,p.bad{font-size:16px;padding:6px 0}p span{margin-left:16px;font-size:13px;opacity:.7}
"""
