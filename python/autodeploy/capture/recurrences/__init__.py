"""Recurrences that the model's code writes out in Python, token by token or block by block, as canonical ops.

torch.export cannot follow a loop whose length is the number of tokens. While a model is exported, `watching` puts such
code under watch: a function of the model's files that contains or reaches a loop (`sources`), and every loop over
`range` itself, outlined as a function of the variables it reads. When one is reached with an open number of tokens, it
is run on random numbers at several lengths, and compared with what canonical ops compute from the same numbers
(`identify`, with the table in `identities`). The op that equals it takes its place in the graph; where none does, the
model is refused with the line of its source. Nothing is decided by a name.
"""

from .watch import watching

__all__ = ["watching"]
