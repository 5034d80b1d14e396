"""Search by descriptors: exact, by indices, and the protocols that measure it."""
