"""Studies: a grid of runs, its directory, its plan, and what trains it."""
