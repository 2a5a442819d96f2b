"""Scores of images against a data set, in the features of a chosen extractor, each with its protocol attached."""
