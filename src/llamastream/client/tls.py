"""TLS contexts from file names."""

from __future__ import annotations

import ssl
from pathlib import Path

from llamastream.errors import SettingError


def client_context(
    ca_file: str | None = None, cert_file: str | None = None, key_file: str | None = None
) -> ssl.SSLContext:
    """A context that checks the server against `ca_file` (or the system's authorities).

    Raises:
        SettingError: a file is missing or is not what it should be.
    """
    for name, path in (("ca_file", ca_file), ("cert_file", cert_file), ("key_file", key_file)):
        if path is not None and not Path(path).is_file():
            raise SettingError(f"{name} = {path!r} does not exist; give the path of a PEM file")
    if key_file is not None and cert_file is None:
        raise SettingError(
            "key_file is set but cert_file is not; a client certificate needs both (or one file with both)"
        )
    try:
        context = ssl.create_default_context(cafile=ca_file)
        if cert_file is not None:
            # A password callback that gives none: without it OpenSSL would ask on the terminal and hang.
            context.load_cert_chain(cert_file, key_file, password=lambda: "")
    except (ssl.SSLError, OSError) as error:
        raise SettingError(
            f"the TLS files cannot be used ({error}); they must be PEM, the key without a password"
        ) from None
    return context
