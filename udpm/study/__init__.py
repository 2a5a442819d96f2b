"""Studies: folders with a configuration and a Snakefile that uses the installed workflow."""
