"""Where a study's runs are sent: renders jobs for engines that exist, and submits them.

    plan.py       study + profile -> jobs; pure      engines/   jobs -> files and commands; pure
    profile.py    where: project, queue, limits      scripts/   static shell, what runs a job there
    hardware.py   how big: families and topologies   pack.py    several runs on one machine
    inputs.py     the text that jobs read

The engines queue, retry and watch; the progress of a run is in its directory. Nothing here imports
jax or flax, so that all of it works on a laptop.
"""
