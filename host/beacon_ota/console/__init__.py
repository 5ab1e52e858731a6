"""Output on a terminal: text that no terminal obeys, tables, progress, JSON."""
