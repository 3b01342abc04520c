"""Pages: a run, several runs, a study."""
