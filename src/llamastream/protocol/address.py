"""The old place of `llamastream.address`."""

from llamastream.address import Address, parse_address

__all__ = ["Address", "parse_address"]
