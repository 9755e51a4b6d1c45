"""Hold octet's GGUF files against what llama.cpp computes from them, and what octet computes.

Usage: python check_llama.py OCTET LLAMA_LOGITS MODEL_DIR IDS.npy FORMAT...

OCTET         the octet binary
LLAMA_LOGITS  llama_logits.cpp built against llama.cpp (llama-cpp-python 0.3.36's, its vendored source)
MODEL_DIR     a checkpoint folder
IDS.npy       token ids, i64, [B,T]
FORMAT        such as gguf:f32 or gguf:q4_k_m

Needs numpy. For each format: the file is exported without judging, run by both on the same ids, and a line says how often the
most likely token is the same, both perplexities over the ids and their ratio, mean KL(octet || llama.cpp) and the largest
difference of a logit. Exit code 1 where the top token agrees on less than 99 % or the perplexities differ by more than 0.3 %
(95 % and 3 % for quantized weights where LLAMA_LOGITS says that it rounds activations to 8 bits, which octet does not; random
models are sharper than real ones).
"""

import os
import subprocess
import sys
import tempfile

import numpy as np


def log_softmax(x):
    x = x.astype(np.float64)
    top = x.max(-1, keepdims=True)
    return x - top - np.log(np.exp(x - top).sum(-1, keepdims=True))


def perplexity(logp, ids):
    taken = np.take_along_axis(logp[:, :-1], ids[:, 1:, None], -1)
    return float(np.exp(-taken.mean()))


def main(octet, llama, model, ids_path, formats):
    ids = np.load(ids_path)
    ids = ids[None] if ids.ndim == 1 else ids
    failed = False
    with tempfile.TemporaryDirectory() as work:
        rows = os.path.join(work, "ids.txt")
        with open(rows, "w") as out:
            out.writelines(" ".join(map(str, row)) + "\n" for row in ids)
        for form in formats:
            file, theirs, ours = (os.path.join(work, name) for name in ("m.gguf", "theirs.f32", "ours.npy"))
            made = subprocess.run([octet, "export", model, "--format", form, "--no-judge", "--no-calibration", "--force", "--out", file], capture_output=True, text=True)
            if made.returncode:
                print(f"{model} {form}: {made.stderr.strip().splitlines()[-1]}")
                continue
            subprocess.run([octet, "logits", file, "--ids", ids_path, "--force", ours], check=True, capture_output=True)
            ran = subprocess.run([llama, file, rows, theirs], check=True, capture_output=True, text=True).stderr
            a = np.load(ours)
            a = a[None] if a.ndim == 2 else a
            b = np.fromfile(theirs, np.float32).reshape(a.shape)
            pa, pb = log_softmax(a), log_softmax(b)
            top = float((a.argmax(-1) == b.argmax(-1)).mean())
            ppl = perplexity(pa, ids), perplexity(pb, ids)
            kl = float((np.exp(pa) * (pa - pb)).sum(-1).mean())
            exact = "products: floats" in ran or form.split(":")[1] in ("f32", "f16", "bf16")
            bad = top < (0.99 if exact else 0.95) or abs(ppl[1] / ppl[0] - 1) > (0.003 if exact else 0.03)
            failed |= bad
            print(f"{os.path.basename(model.rstrip('/')):<24} {form:<12} top {100 * top:6.2f} %  perplexity {ppl[0]:.4f} {ppl[1]:.4f} "
                  f"({100 * (ppl[1] / ppl[0] - 1):+.3f} %)  KL {kl:.1e}  max {np.abs(a - b).max():.1e}{'  BAD' if bad else ''}", flush=True)
    return int(failed)


if __name__ == "__main__":
    if len(sys.argv) < 6:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:5], sys.argv[5:]))
