"""Thousands of simulated beacons against an orchestrator: their protocol, not their code.

They authenticate both ways, poll when they are told to, download, check, report and come back from
reboots; and each keeps a ledger, so that what the orchestrator counted can be held against it.
"""
