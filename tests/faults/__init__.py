"""Tries the bus from outside: real servers, real clients, and what goes wrong with them.

Each case is a module that works on any database and returns what it measured; `test_*.py` runs it small, and
`python -m tests.faults.<case> --help` runs it at any size and prints the numbers.
"""
