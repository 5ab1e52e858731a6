"""Delivers events to other systems, signed and with retries."""
