"""Schemes against each other, solved alike: quantizes, judges, prints a line each.

Usage: python schemes.py OCTET REFERENCE OUT SCHEME,SCHEME,... [MODEL...]; with LEARN=1 in the environment what was solved learns.

The runs are those of ../2026-11-30-frontier/ablation.py: GPTQ with targets from the original, refined; embedding and head w8a16.
"""

import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "2026-11-30-frontier"))
import ablation


def steps(scheme, model, learns):
    yield ablation.quantize(scheme, solver="'gptq'")
    if learns:
        count = ablation.MODELS[model][1]
        yield {"action": "'distill'", "steps": count, "scales": 0.003, "norms": 0.001, "codes": 0.015, "own_text": count * 1024}


def main(octet, reference, out, schemes, *models):
    learns = os.environ.get("LEARN") == "1"
    out.mkdir(parents=True, exist_ok=True)
    for model in models or ablation.MODELS:
        for scheme in schemes.split(","):
            how = "l" if learns else "n"
            found = ablation.run(octet, reference, out, model, scheme, how, list(steps(scheme, model, learns)))
            ppl, kl = 100 * (found["ppl"]["ratio"] - 1), found["kl"]["mean"]
            print(f"{model} {scheme}{' learns' if learns else ''}: {found['bits']:.3f} bits, {ppl:+.2f} %, KL {kl:.5f}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 5:
        sys.exit(__doc__)
    main(*map(pathlib.Path, sys.argv[1:4]), *sys.argv[4:])
