"""What a call does around the engine: outer losses, results, guards, and the bridge to autograd."""
