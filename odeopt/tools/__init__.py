"""What every other part may use: trees, seeds, arguments, files, plugins."""
