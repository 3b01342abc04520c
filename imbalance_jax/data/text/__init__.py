"""Readers: documents from files, TFDS, installed packages and made-up languages."""
