"""The administrators' calls, a module each."""
