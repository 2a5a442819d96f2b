"""Mutated inputs for every reader of a file: each must give a result or a UserError, in bounded time and memory."""
