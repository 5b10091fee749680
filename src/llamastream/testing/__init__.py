"""Doubles that inject the faults which a healthy llama-server cannot be made to show."""
