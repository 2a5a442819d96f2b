"""Ground floor: errors, files, seeds, provenance, devices. Imports nothing of the package, and no torch at import."""
