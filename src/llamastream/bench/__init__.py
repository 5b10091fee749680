"""Measures a server under load, keeps baselines, and judges whether it has become slower."""
