"""Seeds as pure functions of their purpose, so that no random state has to be saved."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Derive a 63-bit seed from the identity of a random draw, e.g. ``derive_seed(run_seed, "noise", iteration)``.

    Equal parts give equal seeds on every machine; any differing part gives an unrelated one (BLAKE2b).
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
