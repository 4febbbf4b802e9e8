"""What was made, made again from its manifest and compared: runs, sample sets and scores."""
