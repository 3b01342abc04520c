"""From a config to a trained run: what is set up, the loop, packs, what it will cost."""
