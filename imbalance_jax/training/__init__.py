"""From a config to a trained run: experiment, pack, plan, loop and recorder."""
