"""Small swarms against a real orchestrator."""

import json
import os
import subprocess

import pytest

from beacon_ota.swarm import scenario
from beacon_ota.swarm.fleet import Swarm, run_swarm
from tests.orchestrator.world import COMMAND, Server

MILD = {"failure_share": 1.0, "in_a_row": 1000, "healthy_share": 0.1}
QUICK = {"boot": "1s", "trial": "5s", "spread": "10s", "poll": "20s", "time_scale": 10}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An orchestrator whose beacons poll every 20 seconds, ten times as fast as ours."""
    with Server(
        tmp_path_factory.mktemp("swarm") / "data", "--poll=20", "--time-scale=10"
    ) as server:
        yield server
        assert "Traceback" not in server.log()


def simulate(server: Server, **table) -> tuple[Swarm, dict]:
    found = scenario.parse_scenario({**QUICK, "for": "15m", **table}, "test")
    fleet = Swarm(found, server.url, server.token)
    return fleet, run_swarm(fleet)


def test_what_the_swarm_lived_through_is_what_was_counted(server):
    """All fates but those that take half an hour to notice; air that loses and cuts."""
    fleet, summary = simulate(
        server,
        beacons=60,
        buildings=3,
        air={"refused": 0.03, "cut": 0.3, "deaf": 0.05},
        releases=[
            {
                "version": "1.1.0",
                "size": 16384,
                "fates": {"failed": 0.1, "rolled_back": 0.1, "ignored": 0.1},
                "plan": {
                    "preset": "all-at-once",
                    "gate": MILD,
                    "retry": {"limit": 4, "pauses": ["10s"]},
                },
            }
        ],
        events=[{"at": "30s", "what": "power_cut", "buildings": 1, "off": "10s"}],
        expect={"serving": 0.5},
    )
    assert summary["mismatches"] == []
    assert summary["unexpected"] == []
    assert summary["refused"].keys() <= {"attempt_over"}
    assert summary["own"]["success"] >= 30
    assert summary["burst"]["count"] > 0
    assert summary["resumed"] > 0
    results = summary["rollouts"][0]["results"]
    assert results["success"] >= 30

    # Its releases are for nobody else.
    plan = fleet.client.get_rollout(next(iter(fleet.rollouts)))["plan"]
    assert [wave["tags"] for wave in plan["waves"]] == [[fleet.prefix]]

    # And a swarm that lies is noticed.
    lied = next(
        one for one in fleet.world.expected.attempts.values() if one.final_status == "success"
    )
    lied.final_status = "failed"
    lied.recorded = "first"
    assert _compare(fleet)


def test_a_hotfix_is_fetched_in_part(server):
    size, common = 131_072, {"base": "x", "modules": 16, "size": 131_072}
    plan = {"preset": "all-at-once", "gate": MILD, "retry": {"limit": 4, "pauses": ["10s"]}}
    _fleet, summary = simulate(
        server,
        beacons=20,
        air={"refused": 0.02, "cut": 0.2},
        releases=[
            {"version": "2.1.0", **common, "plan": plan},
            {"version": "2.1.1", "at": "3m", "changed": 1, **common, "plan": plan},
        ],
        expect={"serving": 1.0},
    )
    assert summary["mismatches"] == [] and summary["unexpected"] == []
    assert summary["indexes"] >= 36
    whole = 20 * size / 1e6
    assert summary["saved_mb"] >= 0.7 * whole
    assert summary["downloaded_mb"] <= 1.6 * whole  # broken downloads and all


def test_beacons_without_the_index_fetch_everything(server):
    plan = {"preset": "all-at-once", "gate": MILD}
    common = {"base": "y", "modules": 4, "size": 65_536, "plan": plan}
    releases = [
        {"version": "3.1.0", **common},
        {"version": "3.1.1", "at": "3m", "changed": 1, **common},
    ]
    _fleet, summary = simulate(server, beacons=5, adaptive=False, releases=releases)
    assert summary["mismatches"] == [] and summary["indexes"] == 0 == summary["saved_mb"]


def _compare(fleet: Swarm) -> list[str]:
    from beacon_ota.swarm import check

    client = fleet.client
    return check.compare_counts(
        fleet.world.expected,
        [row for key in fleet.rollouts for row in client.list_attempts(key)],
        client.list_beacons(tag=fleet.prefix),
        {key: client.get_rollout(key)["results"] for key in fleet.rollouts},
    )


def test_the_command_starts_an_orchestrator_and_says_what_came_of_it(tmp_path):
    file = tmp_path / "tiny.toml"
    file.write_text(
        'beacons = 8\ntime_scale = 10\nfor = "10m"\npoll = "20s"\n'
        'boot = "0s"\ntrial = "0s"\nspread = "0s"\n'
        '[[releases]]\nversion = "1.1.0"\nsize = 16384\nplan = { preset = "all-at-once" }\n'
        '[expect]\nstatus = "completed"\nserving = 1.0\n'
    )
    done = _command("run", str(file), "--own", "--json")
    summary = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert summary["own"]["success"] == 8 and summary["mismatches"] == []
    assert summary["orchestrator"]["rss_mb"] > 0


def test_expectations_that_do_not_come_true_are_an_exit_code(server, tmp_path):
    file = tmp_path / "hopeless.toml"
    file.write_text(
        'beacons = 2\nfor = "2s"\nspread = "0s"\nboot = "0s"\n[expect]\nstatus = "completed"\n'
    )
    done = _command("run", str(file), f"--url={server.url}", f"--token={server.token}")
    assert done.returncode == 1
    assert "swarm_unexpected" in done.stderr
    assert "books" in done.stdout and "agree" in done.stdout


def test_a_wrong_token_is_said_at_once(server):
    done = _command("run", "steady", f"--url={server.url}", "--token=wrong")
    assert done.returncode == 4, done.stderr


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(COMMAND), "swarm", *arguments],
        capture_output=True,
        text=True,
        timeout=150,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
    )
