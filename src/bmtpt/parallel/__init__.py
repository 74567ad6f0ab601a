"""Work that is shared: one run among many ranks (`ranks`), and many jobs at a time (`fleet`)."""
