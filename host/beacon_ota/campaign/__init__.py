"""Failure campaigns: run virtual beacons and the orchestrator, and make every part fail that can.

rig/         releases, one beacon with its orchestrator, the invariants that hold afterwards
power/       power cuts, and firmware with deliberate defects
faults/      faults of network, server, flash and release, in pairs
kills/       orchestrators that are killed, halted, starved
fuzz/        malformed bytes for every parser
soak.py      all faults at once, for a long time
runner.py    cases on several cores, resumable;  report.py: JSON and HTML

The module of a campaign has ``plan_cases``, which lists cases, and ``run_case``, which runs one.
"""
