"""Existing brokers: the log handed on to them, their messages taken in, and fan-out of many nodes over one of them.

It needs the extra `relay`; FastStream's brokers hold the connections.
"""
