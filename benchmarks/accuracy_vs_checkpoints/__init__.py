"""How accurate the gradient of a long inner optimisation is, and what it costs."""
