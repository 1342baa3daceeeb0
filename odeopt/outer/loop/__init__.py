"""Training loops as they are written, recorded and differentiated."""
