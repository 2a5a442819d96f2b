"""Diagnosis of a trained model: losses of quality and variety by level, and the part of the discriminator."""
