"""The folder of a run: where its files are, whose it is, what they say, and where it stands. Imports no torch."""
