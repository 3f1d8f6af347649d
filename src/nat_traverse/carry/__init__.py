"""LAYER 5: what flows through a tunnel: standard streams, a command, a port handed over."""
