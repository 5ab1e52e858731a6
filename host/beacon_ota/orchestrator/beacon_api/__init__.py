"""The beacons' API: poll, download, report. Plain ASGI, without a framework."""
