"""What the consumers of exported models share: how each of them is run, and how logits differ."""

import numpy as np

# Tokens that are generated greedily after the first half of every row.
GREEDY = 32


def execute(out, tool, forward, ids):
    """Runs a model on whole rows, on their second half token by token with keys and values kept, and greedily after their first half.

    `forward(tokens [B,n], state)` gives logits [B,n,V] and the state with which it goes on; a state of None is a beginning. Everything goes to
    the file `out`.
    """
    half = ids.shape[1] // 2
    whole, _ = forward(ids, None)
    part, state = forward(ids[:, :half], None)
    parts = [part]
    for at in range(half, ids.shape[1]):
        part, state = forward(ids[:, at:at + 1], state)
        parts.append(part)
    part, state = forward(ids[:, :half], None)
    written = [ids[:, :half]]
    for _ in range(GREEDY):
        written.append(part[:, -1:].argmax(-1).astype(np.int64))
        part, state = forward(written[-1], state)
    np.savez(out, tool=tool, whole=whole, cached=np.concatenate(parts, 1), written=np.concatenate(written, 1))


def log_softmax(x):
    x = x.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def differ(theirs, ours):
    """How logits `theirs` differ from `ours`, both [B,T,V]."""
    if theirs.shape != ours.shape:
        raise SystemExit(f"octet's logits have shape {ours.shape}, the tool computes {theirs.shape}")
    p, q = log_softmax(theirs), log_softmax(ours)
    return {
        "largest": float(np.abs(theirs - ours).max()),
        "rel_rms": float(np.sqrt(((theirs - ours) ** 2).sum() / (ours ** 2).sum())),
        "same_top": float((theirs.argmax(-1) == ours.argmax(-1)).mean()),
        "kl": float((np.exp(p) * (p - q)).sum(-1).mean()),
    }
