"""What the command `bench` measures: the step, the stream, the alignment, other programs."""
