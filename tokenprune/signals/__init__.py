"""The signals that a scorer or pruner may read, and the context that holds them."""
