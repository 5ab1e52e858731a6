"""Backups of a data folder: taken while the server runs, checked, and put back."""
