"""``beacon-ota campaign``: runs failure campaigns, and writes their reports."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from beacon_ota.console import output
from beacon_ota.errors import UsageError

if TYPE_CHECKING:
    from beacon_ota.campaign.report import CampaignResult
    from beacon_ota.campaign.runner import CampaignOptions, CaseOutcome

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Power cuts, faults and fuzzing on virtual beacons.",
)

SeedOption = Annotated[int, typer.Option(help="Of every choice made at random.")]
JobsOption = Annotated[
    int | None, typer.Option(min=0, help="Processes; 0: this one; default: one for each core.")
]
EveryOption = Annotated[int, typer.Option(min=1, help="Only each n-th case.")]
MinutesOption = Annotated[
    float, typer.Option(min=0.01, help="How long soak and fuzz go on, together with their parts.")
]
KillsOption = Annotated[int, typer.Option(min=1, help="How often the orchestrator is killed.")]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Leave out what passed in this folder before.")
]
OutOption = Annotated[Path, typer.Option(help="Folder of the report, and of what cases need.")]
CoreOption = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        envvar="BEACON_OTA_CORE",
        help="A real core, for a sample of the power cuts.",
    ),
]
CaseOption = Annotated[
    list[str] | None, typer.Option("--case", help="Only this one, by its name; repeatable.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]

_OUT = Path("reports") / "campaign"


@app.command("power")
def run_power_cuts(
    seed: SeedOption = 1,
    jobs: JobsOption = None,
    every: EveryOption = 1,
    core: CoreOption = None,
    resume: ResumeOption = False,
    case: CaseOption = None,
    out: OutOption = _OUT,
    json: JsonOption = False,
) -> None:
    """Cut the power before, inside and after every flash operation of whole updates."""
    _run_campaigns(["power"], _make_options(seed, every, core=core), jobs, resume, case, out, json)


@app.command("mutants")
def run_mutants(
    seed: SeedOption = 1,
    jobs: JobsOption = None,
    case: CaseOption = None,
    out: OutOption = _OUT,
    json: JsonOption = False,
) -> None:
    """Break rules of the firmware on purpose: the power cuts have to notice."""
    _run_campaigns(["mutants"], _make_options(seed), jobs, False, case, out, json)


@app.command("faults")
def run_faults(
    seed: SeedOption = 1,
    jobs: JobsOption = None,
    every: EveryOption = 1,
    resume: ResumeOption = False,
    case: CaseOption = None,
    out: OutOption = _OUT,
    json: JsonOption = False,
) -> None:
    """Combine faults of network, server, flash and release, each pair of them at least once."""
    _run_campaigns(["faults"], _make_options(seed, every), jobs, resume, case, out, json)


@app.command("server")
def run_server_kills(
    seed: SeedOption = 1,
    jobs: JobsOption = None,
    every: EveryOption = 1,
    kills: KillsOption = 1000,
    resume: ResumeOption = False,
    case: CaseOption = None,
    out: OutOption = _OUT,
    json: JsonOption = False,
) -> None:
    """Kill the orchestrator at random, take its disk away, damage its files, crowd it."""
    _run_campaigns(
        ["server"], _make_options(seed, every, kills=kills), jobs, resume, case, out, json
    )


@app.command("soak")
def run_soak(
    seed: SeedOption = 1,
    minutes: MinutesOption = 10,
    case: CaseOption = None,
    out: OutOption = _OUT,
    json: JsonOption = False,
) -> None:
    """Let fifty beacons update again and again while everything fails at random."""
    _run_campaigns(["soak"], _make_options(seed, minutes=minutes), 1, False, case, out, json)


@app.command("fuzz")
def run_fuzzing(
    seed: SeedOption = 1,
    jobs: JobsOption = None,
    minutes: MinutesOption = 5,
    case: CaseOption = None,
    out: OutOption = _OUT,
    json: JsonOption = False,
) -> None:
    """Feed parsers and state machines with what nobody should send."""
    _run_campaigns(["fuzz"], _make_options(seed, minutes=minutes), jobs, False, case, out, json)


@app.command("all")
def run_all(
    seed: SeedOption = 1,
    jobs: JobsOption = None,
    every: EveryOption = 1,
    minutes: MinutesOption = 10,
    kills: KillsOption = 1000,
    core: CoreOption = None,
    resume: ResumeOption = False,
    out: OutOption = _OUT,
    json: JsonOption = False,
) -> None:
    """Run all campaigns, one after the other."""
    from beacon_ota.campaign.runner import CAMPAIGN_NAMES

    options = _make_options(seed, every, minutes=minutes, kills=kills, core=core)
    _run_campaigns(list(CAMPAIGN_NAMES), options, jobs, resume, None, out, json)


def _make_options(
    seed: int,
    every: int = 1,
    *,
    minutes: float = 10,
    kills: int = 1000,
    core: Path | None = None,
) -> "CampaignOptions":
    from beacon_ota.campaign.runner import CampaignOptions

    return CampaignOptions(seed, every, minutes, kills, str(core.resolve()) if core else None)


def _run_campaigns(
    names: list[str],
    options: "CampaignOptions",
    jobs: int | None,
    resume: bool,
    cases: list[str] | None,
    out: Path,
    json: bool,
) -> None:
    """Run campaigns, write the report, and end with exit code 1 when something was wrong."""
    from beacon_ota.campaign import report, runner

    began = datetime.now(UTC).isoformat(" ", "seconds")
    results = []
    for name in names:
        found = runner.count_cores() if jobs is None else jobs
        results.append(_run_campaign(name, options, found, resume, cases, out, json))
        page = report.write_reports(out, results, began)
    if json:
        output.print_json([result.as_document() for result in results])
    else:
        for result in results:
            _print_result(result)
        output.print_markup("report: {}", page)
    if any(result.wrong for result in results):
        raise typer.Exit(1)


def _run_campaign(
    name: str,
    options: "CampaignOptions",
    jobs: int,
    resume: bool,
    cases: list[str] | None,
    out: Path,
    quiet: bool,
) -> "CampaignResult":
    from beacon_ota.campaign import runner
    from beacon_ota.campaign.report import CampaignResult

    folder = out / name
    start = time.monotonic()
    if not quiet:
        output.print_markup("{}: preparing", name, to=output.error_console)
    campaign = runner.load_campaign(name)
    plan = campaign.plan_cases(folder, options)
    chosen = list(plan.cases) if cases is None else cases
    if not chosen:
        raise UsageError("no_cases", f"{name}: nothing to run", found=options.every)
    jobs = min(jobs, plan.jobs or jobs)
    with CaseProgress(name, len(chosen), quiet) as told:
        outcomes = runner.run_cases(
            name, folder, options, chosen, jobs=jobs, resume=resume, on_outcome=told
        )
    spent = time.monotonic() - start
    return CampaignResult(name, options.as_report(), plan.facts, outcomes, spent, jobs, plan.notes)


class CaseProgress:
    """A bar that counts cases, and says at once what is wrong.

    Where the output is no terminal, a line after each twentieth of the cases takes the bar's place.
    """

    def __init__(self, name: str, total: int, quiet: bool):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed
        from rich.progress import TimeRemainingColumn as Remaining

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Elapsed(),
            Remaining(),
        )
        self._bar = Progress(*columns, console=output.error_console, disable=quiet)
        self._task = self._bar.add_task(name, total=total)
        self._quiet = quiet
        self._lines = not quiet and not output.error_console.is_terminal
        self._name, self._total, self._done, self._wrong = name, total, 0, 0

    def __enter__(self) -> Callable[["CaseOutcome"], None]:
        self._bar.__enter__()
        return self._count_outcome

    def __exit__(self, *error: object) -> None:
        self._bar.__exit__(*error)  # type: ignore[arg-type]

    def _count_outcome(self, outcome: "CaseOutcome") -> None:
        self._bar.advance(self._task)
        self._done += 1
        self._wrong += bool(outcome.wrong)
        if self._lines and self._done * 20 // self._total > (self._done - 1) * 20 // self._total:
            text = f"{self._name}: {self._done} of {self._total} cases, {self._wrong} wrong"
            output.error_console.print(text, highlight=False)
        if outcome.wrong and not self._quiet:
            text = f"{outcome.name}: {'; '.join(outcome.wrong)}"
            self._bar.console.print(
                output.fill_markup("[bold red]wrong[/] {}", text), highlight=False
            )


def _print_result(result: "CampaignResult") -> None:

    from beacon_ota.campaign.report import count_classes

    columns = ("group", "outcome", "cases", "wrong")
    title = f"{result.name}: {len(result.outcomes)} cases, {len(result.wrong)} wrong"
    output.console.print(output.build_table(count_classes(result.outcomes), columns, title=title))
    for note in result.notes:
        output.print_markup("{}", note)
    for outcome in result.wrong:
        output.print_markup("[bold red]wrong[/] {}", outcome.name)
        for line in outcome.wrong:
            output.print_markup("  {}", line)
        output.print_markup("  {}", result.repro_command(outcome.name))
