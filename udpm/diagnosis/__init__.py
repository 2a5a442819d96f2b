"""Where a trained model loses quality and variety: by level of the chain, and between generator and discriminator."""
