"""Fuzzing: bytes that no proper peer sends, guided by coverage."""
