"""A direct tunnel between two machines that both sit behind NAT, with no server in between."""

from nat_traverse._version import __version__

__all__ = ["__version__"]
