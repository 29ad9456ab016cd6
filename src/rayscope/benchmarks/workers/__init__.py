"""One script a contender; a peer's runs in the peer's environment and imports nothing of rayscope."""
