"""How a llama-server comes to exist: a llama-server executable, or the embedded engine."""
