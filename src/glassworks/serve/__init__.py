"""A service for shared models: checks in one process, weights in another, the same handlers without a
network."""
