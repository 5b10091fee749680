"""Entry point: whatever goes wrong is one clear message and an exit code, never a traceback."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command line. Imports come late, so that Ctrl-C in the first moments is as quiet as later on."""
    try:
        from llamastream.errors import LlamaStreamError
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    try:
        from llamastream.cli.app import app

        app()
    except LlamaStreamError as error:
        print(f"llamastream: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
