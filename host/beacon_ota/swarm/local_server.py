"""An orchestrator of the swarm's own, in a process beside it: no other needs to be touched."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from beacon_ota.orchestrator.server.subprocess import OrchestratorProcess
from beacon_ota.swarm.scenario import WINDOW, Scenario


@contextmanager
def run_local_server(scenario: Scenario) -> Iterator[OrchestratorProcess]:
    """Start one that takes unsigned releases; it ends with the context, and leaves nothing."""
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
