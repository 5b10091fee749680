"""Pure protocol code: bytes in, events out. No sockets, no clocks, no logging."""
