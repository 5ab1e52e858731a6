"""Other update servers beside ours, as published, each in an environment of its own."""
