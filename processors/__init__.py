"""Media and dialogue → tensors → turn; published to the Hub as flat files."""
