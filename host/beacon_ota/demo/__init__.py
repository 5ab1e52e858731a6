"""The demonstration: the whole pipeline on virtual beacons, from unprovisioned boxes to a halt."""
