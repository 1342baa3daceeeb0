"""How good each method's meta-gradient is, and what it costs, against the horizon."""
