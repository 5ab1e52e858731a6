"""The report on an inspected file: plain facts for scripts, findings for people."""

from dataclasses import dataclass, field

from beacon_ota.errors import InputError

GOOD, NOTE, WARN, BAD = "good", "note", "warn", "bad"


Json = dict[str, object]


@dataclass(frozen=True)
class Finding:
    """One sentence about a file; ``level`` is good, note, warn or bad."""

    level: str
    code: str
    text: str


@dataclass
class InspectionReport:
    """The report on a file. ``facts`` holds plain values, lists and dictionaries."""

    kind: str
    size: int
    sha256: str
    facts: Json = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no finding is bad."""
        return all(finding.level != BAD for finding in self.findings)

    def as_dict(self) -> Json:
        """Return the report for JSON."""
        findings = [vars(finding) for finding in self.findings]
        return {**vars(self), "findings": findings, "ok": self.ok}

    def add_finding(self, level: str, code: str, text: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(level, code, text))

    def add_error(self, part: str, error: InputError, level: str = BAD) -> None:
        """Add an error as a finding."""
        found = "" if error.found is None else f" (found {error.found})"
        self.add_finding(level, error.code, f"{part}: {error.message}{found}")
