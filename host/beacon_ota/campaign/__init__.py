"""Failure campaigns: what happens to virtual beacons and the orchestrator when things fail.

kit            releases, good and broken, and the flash image of a provisioned beacon
orchestrator   the real orchestrator inside this process, which can be copied and restarted
front          the socket before it, which can misbehave
bench          one beacon, its network, its orchestrator
recording      a whole update: every flash operation, and what the orchestrator knew by then
oracle         what must hold after whatever happened
power …        the campaigns, each a list of cases and a function that runs one
runner         cases on several cores, resumable;  report: JSON and HTML
"""
