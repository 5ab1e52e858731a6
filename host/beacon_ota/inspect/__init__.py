"""Inspects any file of the pipeline: its kind, its parts, findings."""
