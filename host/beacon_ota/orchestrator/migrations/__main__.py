"""Bring the database whose URL is on standard input to the newest schema."""

import sys

from beacon_ota.orchestrator.database import connect, upgrade

engine = connect(sys.stdin.readline().strip())
upgrade(engine)
engine.dispose()
