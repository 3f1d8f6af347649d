"""LAYER 2: the only code that touches the operating system's network."""
