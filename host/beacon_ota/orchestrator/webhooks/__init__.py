"""Tells other systems what happens, again until they have it."""
