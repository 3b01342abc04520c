"""Measurements of a model, per language. They know parameters and text, not training."""
