"""The word2vec baseline of alignment."""
