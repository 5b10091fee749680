"""The command line; with `compose`, the only place that wires client and engine together."""
