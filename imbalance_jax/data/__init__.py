"""From text to batches: sources, their prepared form, and the order of the stream."""
