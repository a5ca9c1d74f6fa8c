"""Splits by the content of pictures: rows that share a picture, directly or through others, land in the same split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def in_test(keys: Sequence[Sequence[str]], holdout_frac: float, seed: int = 0) -> list[bool]:
    """For each row, whether it is held out. ``keys`` are the content keys of a row's pictures (see `Picture.key`).

    The decision hangs on the smallest key of all rows that are linked by pictures and on nothing else: neither the order of the
    rows nor the file they are in changes it.
    """
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        top = key
        while parent.setdefault(top, top) != top:
            top = parent[top]
        while parent[key] != top:
            parent[key], key = top, parent[key]
        return top

    for row in keys:
        for other in row[1:]:
            a, b = sorted((root(row[0]), root(other)))
            parent[b] = a  # the smaller key leads
    return [_share(root(row[0]), seed) < holdout_frac for row in keys]


def _share(key: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
