"""LAYER 1: finding a path, as machines without input or output.

Datagrams, errors and the time go in; effects and events come out. Given the same inputs in the
same order, a machine does the same thing, always: randomness, clocks and sockets are arguments.
"""
