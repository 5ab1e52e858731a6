"""Helpers of the command modules: prompts, help, the connection to a server."""
