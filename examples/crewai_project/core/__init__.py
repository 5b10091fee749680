"""What the whole project shares."""
