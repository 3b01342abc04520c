"""The reference study (arXiv 2404.07982): its numbers, its figures, and ours beside them."""
