"""The orchestrator: holds releases, decides who gets what when, and counts what happened.

poll.py, download.py, status.py   the beacons' side: plain ASGI, no framework
api/                              the administrators' side: FastAPI
view.py                           what decisions need, in memory
store/                            SQL, one module per table; functions over a connection
rollout/                          the decisions: pure functions of values
"""
