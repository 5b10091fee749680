"""Sync and async shells over the protocol: connections, streams, clients."""
