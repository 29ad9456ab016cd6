"""Token features, such as ' and': which latent detects each, how well, and in which contexts."""
