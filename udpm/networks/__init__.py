"""The generator (a U-Net that doubles its input's side) and the discriminator, independent of the noise schedule."""
