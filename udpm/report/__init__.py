"""Tables and figures, drawn from files that other stages made. Imports no torch."""
