"""Ten synthetic images that a network can be trained on in place of a thousand real ones."""
