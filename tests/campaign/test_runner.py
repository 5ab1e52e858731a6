"""How campaigns are run and told: resumed, repeated by name, in JSON and HTML, by exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from beacon_ota.campaign import report, runner, soak
from beacon_ota.campaign.fuzz import run as fuzz
from beacon_ota.campaign.report import CampaignResult
from beacon_ota.campaign.runner import CampaignOptions, CaseOutcome

COMMAND = Path(sys.executable).with_name("beacon-ota")


class Fake:
    """A campaign whose cases say how they end; they count how often they run."""

    def __init__(self):
        self.ran: list[str] = []

    def case(self, name: str, folder: Path, options: CampaignOptions) -> CaseOutcome:
        self.ran.append(name)
        if name == "raises":
            raise RuntimeError("no <b>good</b>")
        return CaseOutcome(name, "group", name, ["not good"] if name == "bad" else [])


@pytest.fixture
def fake(monkeypatch):
    made = Fake()
    monkeypatch.setattr(runner, "find", lambda name: made)
    return made


def test_resume_runs_what_has_not_passed(fake, tmp_path):
    cases = ["good", "bad", "raises", "fine"]
    first = runner.run_cases("fake", tmp_path, CampaignOptions(), cases[:3], jobs=0)
    assert [bool(outcome.wrong) for outcome in first] == [False, True, True]
    assert first[2].wrong == ["RuntimeError: no <b>good</b>"]
    with (tmp_path / runner.RESULTS_FILE).open("a") as file:
        file.write('{"name": "cut o')  # the power failed here
    fake.ran.clear()
    told = []
    again = runner.run_cases(
        "fake", tmp_path, CampaignOptions(), cases, jobs=0, resume=True, on_outcome=told.append
    )
    assert fake.ran == ["bad", "raises", "fine"]
    assert [outcome.name for outcome in again] == cases and len(told) == 4
    fake.ran.clear()
    runner.run_cases("fake", tmp_path, CampaignOptions(), cases, jobs=0)
    assert fake.ran == cases, "without --resume everything is run again"


def test_reports_say_what_went_wrong_and_how_to_see_it_again(fake, tmp_path):
    outcomes = runner.run_cases("power", tmp_path, CampaignOptions(7), ["good", "raises"], jobs=0)
    result = CampaignResult(
        "power", CampaignOptions(7).as_report(), {"x": {"operations": 5}}, outcomes, 61.0, 2
    )
    page = report.write_reports(tmp_path, [result], "now").read_text()
    doc = json.loads((tmp_path / report.JSON).read_text())
    assert doc["passed"] is False and doc["campaigns"][0]["cases"] == 2
    repro = "beacon-ota campaign power --seed 7 --case 'raises'"
    assert doc["campaigns"][0]["wrong"][0]["repro"] == repro
    assert "1 of 2 cases went wrong" in page and "no &lt;b&gt;good" in page
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")
    good = CampaignResult("power", CampaignOptions().as_report(), {}, outcomes[:1], 1.0, 2)
    assert "all 1 cases passed" in report.write_reports(tmp_path, [good], "now").read_text()


@pytest.mark.timeout(600)
def test_from_the_command_line(tmp_path):
    def run(*args: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "NO_COLOR": "1"}
        return subprocess.run(
            [COMMAND, "campaign", *args, "--out", str(tmp_path)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
        )

    done = run("fuzz", "--minutes", "0.1", "--case", "offers", "--case", "reports", "--json")
    assert done.returncode == 0, done.stderr
    (doc,) = json.loads(done.stdout)
    assert doc["passed"] and doc["cases"] == 2
    assert all(one["inputs"] > 1 for one in doc["measured"])
    assert (tmp_path / "report.html").exists()
    done = run("fuzz", "--case", "nothing", "--jobs", "0")
    assert done.returncode == 1 and "no such target" in done.stdout


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_fuzz(name, tmp_path):
    outcome = fuzz.run_case(name, tmp_path, CampaignOptions(minutes=0.15))
    assert not outcome.wrong and outcome.facts["lines"] > 50


def test_fuzzing_notices_what_has_no_name():
    def read(data: bytes) -> None:
        if data.startswith(b"good"):
            raise ValueError("a name")
        raise KeyError("none")

    import random

    target = fuzz.FuzzTarget([b"good input"], read, (ValueError,), (runner,))
    _, wrong = fuzz.fuzz_target(target, 5, random.Random(1))
    assert wrong and wrong[0].startswith("KeyError")


def test_leaks():
    flat = soak.MemorySamples([100.0] * 30, [1000] * 30)
    assert not soak.find_growth(flat)
    assert soak.find_growth(soak.MemorySamples([100.0 - n for n in range(30)], [1000] * 30))
    assert soak.find_growth(soak.MemorySamples([100.0] * 30, [1000 + 30 * n for n in range(30)]))


@pytest.mark.timeout(600)
def test_a_short_soak(tmp_path):
    outcome = soak.run_case("5:0.15", tmp_path, CampaignOptions())
    assert not outcome.wrong, outcome
    assert outcome.facts["successes"] >= 5 and outcome.facts["cuts"] > 0
