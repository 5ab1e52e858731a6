"""Orchestrators as processes that are killed, halted, starved of disk and locks."""
