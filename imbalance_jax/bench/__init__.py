"""What `python -m imbalance_jax.bench` measures."""
