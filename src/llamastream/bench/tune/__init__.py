"""What settings are best here: candidates, trials, the search, and what it found."""
