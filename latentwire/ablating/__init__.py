"""What ``latentwire ablate`` is made of: its file, its results, scores, plots and report."""
