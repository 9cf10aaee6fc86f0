"""What stays in primary storage and what may go: uses, pins, and making room."""
