"""A set of seqs as text: `3-7,9` is 3, 4, 5, 6, 7 and 9. What a group has matched is mostly dense, so it is short."""

from __future__ import annotations

from collections.abc import Iterable


def encode_seqs(seqs: Iterable[int]) -> str:
    """Return the text of some seqs, in any order."""
    runs: list[list[int]] = []
    for seq in sorted(seqs):
        if runs and seq == runs[-1][1] + 1:
            runs[-1][1] = seq
        else:
            runs.append([seq, seq])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def decode_seqs(text: str) -> list[int]:
    """Return the seqs of a text, in order."""
    seqs: list[int] = []
    for run in filter(None, text.split(",")):
        first, _, last = run.partition("-")
        seqs.extend(range(int(first), int(last or first) + 1))
    return seqs
