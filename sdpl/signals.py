"""The signals that stop a command: Ctrl-C, what service managers send, and the end of a terminal."""

import signal

STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
