"""The page of a study: its figures, and its sections by subject."""
