"""What one meta-update costs in memory and time, against the number of inner steps."""
