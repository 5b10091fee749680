"""Entry point: whatever goes wrong is one clear message and an exit code, never a traceback."""

from __future__ import annotations

import io
import signal
import sys


def main() -> None:
    """Run the command line. Imports come late, so that Ctrl-C in the first moments is as quiet as later on."""
    try:
        from llamastream.errors import LlamaStreamError

        try:
            for stream in (sys.stdout, sys.stderr):
                if isinstance(stream, io.TextIOWrapper):  # None where it is closed
                    stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show all gets the rest
            from llamastream.cli.app import app

            app()
        except LlamaStreamError as error:
            from llamastream.printable import printable

            print(f"llamastream: {printable(str(error))}", file=sys.stderr)  # it may quote a server
            sys.exit(1)
        except OSError as error:
            # Such as a full disk behind stdout; click has dealt with a reader that left.
            print(
                f"llamastream: {error.strerror or error}{f': {error.filename}' if error.filename else ''}",
                file=sys.stderr,
            )
            sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
