"""Both ends of a tunnel on this one machine: the program as a user runs it, shown at work."""
