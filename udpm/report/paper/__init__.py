"""The paper's tables and the summary of a study, published numbers next to measured ones."""
