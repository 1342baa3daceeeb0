"""What a meta-gradient costs in plain trainings, for long loops and for many parameters."""
