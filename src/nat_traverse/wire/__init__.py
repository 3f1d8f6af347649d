"""LAYER 0: bytes to values and back. No state, no clock, no input or output."""
