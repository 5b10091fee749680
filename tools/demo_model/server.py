"""A real llama-server on the demo model, in a process of its own (needs the package `xllamacpp`).

Prints the address it listens on and serves until its standard input closes.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import xllamacpp


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="GGUF file")
    parser.add_argument("--slots", type=int, default=4, help="parallel slots")
    parser.add_argument("--context", type=int, default=8192, help="context length of one slot")
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    arguments = parser.parse_args()
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(arguments.model)
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.n_parallel = arguments.slots
    parameters.n_ctx = arguments.slots * arguments.context
    parameters.n_gpu_layers = 0
    parameters.cpuparams.n_threads = arguments.threads
    parameters.endpoint_slots = True
    parameters.endpoint_metrics = True
    parameters.verbosity = 0
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    # Destroying the server while a stream is in flight would wait for ever.
    os._exit(0)


if __name__ == "__main__":
    main()
