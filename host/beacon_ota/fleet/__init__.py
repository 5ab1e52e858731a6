"""Many virtual beacons in one process, each with settings of its own."""
