"""Work that is shared: many jobs at a time (`fleet`)."""
