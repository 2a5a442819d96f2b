"""Mutated inputs for every reader of a file: none may end in anything but a result or a UserError, late or large."""
