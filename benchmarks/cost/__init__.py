"""What a meta-gradient costs in memory and time: one update, long loops, a transformer."""
