"""What `llamastream.integrations.fastapi` is made of: events as JSON, errors as statuses, and the response."""
