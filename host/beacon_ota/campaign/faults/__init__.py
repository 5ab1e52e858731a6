"""Faults of network, server, flash and release, in pairs."""
