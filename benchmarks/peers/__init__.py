"""The same meta-gradient by odeopt, by other packages and by hand: seconds, memory and errors."""
