"""Training: rendered pictures with exact alpha, losses, and the loops that fit the networks."""
