"""Many virtual beacons in one process, each with its own settings."""
