"""LAYER 3: the session on a validated path, without input or output of its own."""
