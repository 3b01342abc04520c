"""A run as files and as a process: its directory, metrics, storage, progress, interrupts."""

from imbalance_jax.runs.run_directory import RunDirectory as RunDirectory
from imbalance_jax.runs.run_directory import run_and_step as run_and_step
