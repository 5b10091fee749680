"""Import paths that existing projects use; nothing of this is in the wheel."""
