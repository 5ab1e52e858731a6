"""The calls of beacons: poll, download, report. Plain ASGI, no framework."""
