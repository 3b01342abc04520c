"""Fine-tuning of a trained run on tasks, in each language."""
