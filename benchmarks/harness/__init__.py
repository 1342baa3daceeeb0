"""What every benchmark shares: stored results, progress, tables, plots and the registry."""
