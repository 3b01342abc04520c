"""The order of data: which sequence is trained on at which position."""
