"""Training: losses of the two players, the loop, checkpoints, exact resume."""
