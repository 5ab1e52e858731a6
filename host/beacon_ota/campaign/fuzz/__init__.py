"""Fuzzing: malformed bytes for every parser, guided by coverage."""
