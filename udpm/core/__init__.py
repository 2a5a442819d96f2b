"""Base layer: errors, files, seeds, provenance, devices. Imports nothing else of udpm, and no torch at import."""
