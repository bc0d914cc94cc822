"""A run's folder: options, checkpoints, and loading of the network."""
