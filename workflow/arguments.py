"""Several words of a command as one of a rule's params."""

from __future__ import annotations


class Arguments(list):
    """Words of a command; `{params.NAME:q}` in a shell line quotes each of them.

    Args:
        words: the words; their texts are what the command gets.
    """

    def __init__(self, *words: object) -> None:
        super().__init__(str(word) for word in words)

    def __repr__(self) -> str:
        # What Snakemake records of params. Earlier versions recorded one text, and what they made must not be redone.
        return repr(" ".join(self))
