"""Reads any file of the pipeline, and says what is in it."""
