"""Alphabets of four bits side by side: quantizes, judges on text that was not calibrated with, prints a table a model.

Usage: python alphabets.py OCTET REFERENCE OUT [MODEL...] [--schemes w4 w4t ...]

REFERENCE holds models/NAME and corpus/technical, corpus/tinystories; OUT gets a folder a run. What OUT already has is not run again.
Linears only, GPTQ with targets from the original, 64 windows; embedding and head w8a16.
"""

import json
import pathlib
import subprocess
import sys

MODELS = ["stories260K", "babyllama-105", "pocket"]
SCHEMES = ["w4", "w4t", "w4l", "w4e"]
GROUPS = [32, 128]
REFINE = [0, 3]


def run(octet, reference, out, model, scheme, group, refine):
    folder = out / f"{model}-{scheme}-g{group}-r{refine}"
    result = folder.with_suffix(".json")
    if result.exists():
        return json.loads(result.read_text())
    recipe = folder.with_suffix(".toml")
    recipe.write_text(
        f"[[step]]\naction = 'quantize'\ntargets = ['linears']\nscheme = '{scheme}a16-g{group}'\nsolver = 'gptq'\nrefine = {refine}\n"
        "[[step]]\naction = 'quantize'\ntargets = ['embedding', 'head']\nscheme = 'w8a16'\n"
    )
    text = "technical" if model == "pocket" else "tinystories"
    calibration, test = ("valid.jsonl", "test.jsonl") if model == "pocket" else ("calibration.txt", "evaluation.txt")
    base, corpus = reference / "models" / model, reference / "corpus" / text
    shared = ["--threads", "1", "--reference-cache", out / "cache"]
    how = ["--recipe", recipe, "--no-judge", "--calibration", corpus / calibration, "--calibration-samples", 64]
    log = folder.with_suffix(".log").open("a")
    call = lambda *args: subprocess.run([str(arg) for arg in args], stdout=subprocess.PIPE, stderr=log, text=True, check=True)
    call(octet, "quantize", base, folder, *how, "--force", *shared)
    window = ["--context", 512, "--eval-tokens", 102400] if model == "pocket" else ["--eval-tokens", 98304]
    judged = call(octet, "eval", folder, "--base", base, "--eval-text", corpus / test, *window, "--json", *shared)
    result.write_text(json.dumps(json.loads(judged.stdout)["measures"]))
    return run(octet, reference, out, model, scheme, group, refine)


def main(octet, reference, out, *rest):
    out.mkdir(parents=True, exist_ok=True)
    cut = rest.index("--schemes") if "--schemes" in rest else len(rest)
    models, schemes = rest[:cut] or MODELS, rest[cut + 1 :] or SCHEMES
    for model in models:
        print(f"\n| {model} | " + " | ".join(f"g{g}{', refined' if r else ''}" for g in GROUPS for r in REFINE) + " |")
        print("|---" * (1 + len(GROUPS) * len(REFINE)) + "|")
        for scheme in schemes:
            cells = []
            for group in GROUPS:
                for refine in REFINE:
                    measures = run(octet, reference, out, model, scheme, group, refine)
                    cells.append(f"{100 * (measures['ppl']['ratio'] - 1):+.2f} %, {measures['kl']['mean']:.5f}")
            print(f"| `{scheme}` |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*map(pathlib.Path, sys.argv[1:4]), *sys.argv[4:])
