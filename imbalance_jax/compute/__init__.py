"""Everything that knows a device: the model, its update, meshes, processes, checkpoints."""
