"""The swarm: thousands of simulated beacons that implement the protocol, not the firmware.

They authenticate both ways, poll at the given times, download, verify, report and reboot. The swarm
keeps its own counts, which are compared with those of the orchestrator.
"""
