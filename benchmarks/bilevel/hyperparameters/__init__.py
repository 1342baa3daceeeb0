"""Learning rates and weight decays by the gradient of validation, against random search."""
