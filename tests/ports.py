"""Ports for servers that tests start."""

import itertools
import os
import socket

_NUMBERS = itertools.count(os.getpid() * 16)


def free_port() -> int:
    """A port that is free and stays so until it is used: below those that the system gives to whoever asks (32768 and
    on), others for each process that runs tests, and never the same again."""
    for number in _NUMBERS:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port := 10_000 + number % 20_000))
            except OSError:
                continue
            return port
