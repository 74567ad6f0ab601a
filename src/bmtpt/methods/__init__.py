"""What is trained, from what it starts and what its loss adds: one short file per method."""
