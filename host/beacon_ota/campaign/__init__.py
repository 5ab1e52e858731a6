"""Failure campaigns: what happens to virtual beacons and the orchestrator when things fail.

rig/         releases, the bench of one beacon, orchestrators, what must hold afterwards
power/       power cuts, and firmware with defects made on purpose
faults/      faults of network, server, flash and release, in pairs
kills/       orchestrators that are killed, halted, starved
fuzz/        bytes that no proper peer sends
soak.py      everything at once, for long
runner.py    cases on several cores, resumable;  report.py: JSON and HTML

A campaign's module has ``plan``, a list of cases, and ``case``, which runs one.
"""
