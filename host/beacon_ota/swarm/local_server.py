"""Runs an orchestrator for one scenario, in a process beside the swarm."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from beacon_ota.orchestrator.server.subprocess import OrchestratorProcess
from beacon_ota.swarm.scenario import WINDOW, Scenario


@contextmanager
def run_local_server(scenario: Scenario) -> Iterator[OrchestratorProcess]:
    """Run an orchestrator that accepts unsigned releases; its data is removed at the end."""
    with (
        tempfile.TemporaryDirectory(prefix="beacon-swarm-") as folder,
        OrchestratorProcess(
            Path(folder),
            "--insecure",
            f"--window={WINDOW}",
            f"--poll={scenario.poll_s}",
            f"--time-scale={scenario.scale}",
        ) as child,
    ):
        yield child
