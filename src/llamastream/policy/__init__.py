"""Pure decisions: a frozen snapshot and a clock value in, a decision out."""
