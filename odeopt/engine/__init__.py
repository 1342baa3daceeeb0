"""One solve on flat tensors: the forward sweep, and the backward sweep over what it kept."""
