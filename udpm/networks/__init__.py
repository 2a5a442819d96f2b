"""The generator (a U-Net that doubles its input's side) and the discriminator. They know of no noise schedule."""
