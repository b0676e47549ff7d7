"""What stands in a run's directory: every name once (`layout`), and how a file is replaced (`files`)."""
