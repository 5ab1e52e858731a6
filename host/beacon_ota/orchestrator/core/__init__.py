"""The state of the fleet in memory, and the engine that moves its rollouts."""
