"""Have every folder that `octet export` writes executed by the tool it is for, and hold its logits against octet's.

Usage: python check_exports.py OCTET MODEL TEXT [--mlx PYTHON] [--zeros PYTHON] [--cases a,b] [--formats a,b] [--families DIR] [--work DIR]

OCTET  the octet binary
MODEL  a model in floats: `pocket`, or a checkpoint folder
TEXT   a text the model knows; two runs of tokens are taken from it

Run it by the Python of an environment with requirements.txt; --mlx is that of one with requirements-mlx.txt, --zeros of one with
requirements-zeros.txt, whose compressed-tensors loads packed zero points, as 0.20 does not (without them these cases are left out).

For each case the model is quantized and exported, the consumer (consume_*.py) runs whole rows, the second half of every row token by
token with keys and values kept, and 32 tokens greedily; octet computes logits of the same tokens. A line says the largest difference of a
logit, the relative root mean square of both runs, how often the most likely token is the same, mean KL(tool || octet), and how many greedy
tokens octet would have chosen too. Exit code 1 where a consumer fails or differs by more than the format's tolerance.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from common import differ

HERE = Path(__file__).resolve().parent

# Largest relative root mean square of logits where both round activations to 8 bits: one that is rounded the other way moves what follows.
ROUNDED = 6e-2
# Format: script, and the largest relative root mean square of logits. Kernels of gptqmodel round to 16 bits; bitsandbytes excepts an
# outlier's whole column from rounding in all tokens of a call, octet the outlier.
CONSUMERS = {
    "compressed-tensors": ("consume_transformers.py", 2e-5),
    "compressed-tensors by 0.19": ("consume_transformers.py", 2e-5),
    "gptq": ("consume_transformers.py", 5e-3),
    "gptq by gptqmodel": ("consume_gptqmodel.py", 2e-2),
    "awq": ("consume_transformers.py", 5e-3),
    "bnb8": ("consume_transformers.py", 0.1),
    "safetensors": ("consume_transformers.py", 2e-5),
    "mlx": ("consume_mlx.py", 2e-5),
    "onnx": ("consume_onnx.py", 2e-5),
    "npz": ("consume_npz.py", 2e-5),
}

STEP = """[[step]]
action = "quantize"
targets = ["%s"]
scheme = "%s"
"""
RECIPES = {
    # Groups of inputs that are not neighbours.
    "ordered.toml": "portable = true\n" + STEP % ("linears", "w4a16-g64") + 'solver = "gptq"\nact_order = "desc"\n',
    "mixed.toml": "portable = true\n" + STEP % ("linears", "w4a16-g32") + "".join(STEP % (role, "w8a16-g64") for role in "qkvo"),
}

# Name, how the model is quantized (nothing: not at all), how it is exported, formats.
CASES = [
    ("floats", None, "", ["safetensors", "onnx"]),
    ("w4a16-g128", "--scheme w4a16-g128 --portable --no-calibration", "", ["compressed-tensors", "gptq", "awq", "mlx", "npz", "onnx"]),
    ("w4a16-g32-asym", "--scheme w4a16-g32-asym --portable --no-calibration", "", ["compressed-tensors by 0.19", "gptq", "awq", "mlx", "npz", "onnx"]),
    ("w8a16", "--scheme w8a16 --portable --no-calibration", "", ["compressed-tensors", "gptq", "mlx", "bnb8", "npz", "onnx"]),
    ("w8a8", "--scheme w8a8 --portable --no-calibration", "", ["compressed-tensors", "bnb8", "onnx"]),
    ("w8a8-o6", "--scheme w8a8-o6 --portable --no-calibration", "", ["bnb8"]),
    ("w2a16-g32", "--scheme w2a16-g32 --portable --no-calibration", "", ["gptq", "mlx", "onnx"]),
    ("w3a16-g32", "--scheme w3a16-g32 --portable --no-calibration", "", ["compressed-tensors", "gptq", "mlx"]),
    ("w5a16-g64", "--scheme w5a16-g64 --portable --no-calibration", "", ["mlx", "npz", "onnx"]),
    ("w6a16-g64", "--scheme w6a16-g64 --portable --no-calibration", "", ["mlx"]),
    ("mixed 8 and 4 bits", "--recipe mixed.toml --no-calibration", "", ["compressed-tensors", "gptq by gptqmodel", "mlx", "onnx"]),
    ("activation order", "--recipe ordered.toml --calibration-samples 32", "", ["gptq"]),
    ("w4a16-g32 with embedding", "--scheme w4a16-g32 --no-calibration", "", ["mlx", "npz", "onnx"]),
    ("w4a16-g64 decoded", "--scheme w4a16-g64 --portable --no-calibration", "--requantize", ["safetensors"]),
]


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    return done.returncode, done.stdout.strip(), done.stderr.strip()


def octet_logits(octet, model, ids, work, activations):
    np.save(work / "asked.npy", ids)
    out = work / "ours.npy"
    code, _, error = run(octet, "logits", model, "--ids", work / "asked.npy", out, "--force", "--activations", activations)
    if code:
        sys.exit(f"octet logits {model}: {error}")
    found = np.load(out)
    return found[None] if found.ndim == 2 else found


def check(octet, source, exported, form, python, work, ids, rounds):
    """The figures of one exported folder, or why there are none."""
    script, tolerance = CONSUMERS[form]
    code, _, error = run(python, HERE / script, exported, work / "ids.npy", work / "theirs.npz")
    if code:
        return {"why": error.splitlines()[-1] if error else f"exit code {code}"}
    theirs = np.load(work / "theirs.npz")
    # What rounds activations to 8 bits is held against octet doing so.
    activations = "int8" if form == "bnb8" or rounds and form in ("compressed-tensors", "onnx") else "exact"
    ours = octet_logits(octet, source, ids, work, activations)
    written, half = theirs["written"], ids.shape[1] // 2
    chosen = octet_logits(octet, source, written, work, activations)[:, half - 1:-1].argmax(-1)
    whole, cached = differ(theirs["whole"], ours), differ(theirs["cached"], ours)
    return {
        "tool": str(theirs["tool"]), "whole": whole, "cached": cached, "greedy": float((chosen == written[:, half:]).mean()),
        "ok": max(whole["rel_rms"], cached["rel_rms"]) <= (tolerance if activations == "exact" or form == "bnb8" else ROUNDED),
    }


def line(name, form, found):
    """Prints a line of the table; whether it is a failure."""
    if "why" in found:
        print(f"| {name} | {form} | FAILED: {found['why']} |", flush=True)
        return True
    whole, cached = found["whole"], found["cached"]
    print(f"| {name} | {form} | {found['tool']}{'' if found['ok'] else ' ABOVE TOLERANCE'} | {max(whole['largest'], cached['largest']):.1e} "
          f"| {whole['rel_rms']:.1e} | {cached['rel_rms']:.1e} | {100 * min(whole['same_top'], cached['same_top']):.2f} % "
          f"| {max(whole['kl'], cached['kl']):.1e} | {100 * found['greedy']:.1f} % |", flush=True)
    return not found["ok"]


def families(octet, fixtures, work):
    """Every folder of small random models (config, weights, input_ids.npy) as a graph in onnxruntime."""
    failed = False
    for model in sorted(path.parent for path in Path(fixtures).glob("*/input_ids.npy")):
        exported = work / f"family-{model.name}"
        code, _, error = run(octet, "export", model, "--format", "onnx", "--out", exported, "--no-judge", "--force")
        if code:
            print(f"| {model.name} | onnx | refused: {error.splitlines()[-1]} |", flush=True)
            continue
        np.save(work / "ids.npy", ids := np.load(model / "input_ids.npy"))
        failed |= line(model.name, "onnx", check(octet, model, exported, "onnx", sys.executable, work, ids, False))
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("octet")
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--mlx")
    parser.add_argument("--zeros")
    parser.add_argument("--cases")
    parser.add_argument("--formats")
    parser.add_argument("--tokens", type=int, default=192)
    parser.add_argument("--families", help="a folder of small models, each run as ONNX, and nothing else")
    parser.add_argument("--work")
    args = parser.parse_args()
    work = Path(args.work or tempfile.mkdtemp(prefix="octet-exports-"))
    work.mkdir(parents=True, exist_ok=True)
    print("| model | format | executed by | largest | rel. rms | with cache | same top | KL | greedy |\n|---|---|---|---|---|---|---|---|---|")
    if args.families:
        sys.exit(families(args.octet, args.families, work))
    floats, failed = work / "floats", False
    for recipe, text in RECIPES.items():
        (work / recipe).write_text(text)
    code, _, error = run(args.octet, "export", args.model, "--format", "safetensors", "--out", floats, "--no-judge", "--force")
    if code:
        sys.exit(error)
    from tokenizers import Tokenizer
    tokens = Tokenizer.from_file(str(floats / "tokenizer.json")).encode(Path(args.text).read_text()[:200_000]).ids
    ids = np.array(tokens[:2 * args.tokens], np.int64).reshape(2, args.tokens)
    np.save(work / "ids.npy", ids)
    pythons = {"mlx": args.mlx, "compressed-tensors by 0.19": args.zeros}
    for name, quantize, exporting, formats in CASES:
        formats = [f for f in formats if (not args.formats or f in args.formats.split(",")) and pythons.get(f, True)]
        if not formats or (args.cases and name not in args.cases.split(",")):
            continue
        source = floats if quantize is None else work / name.replace(" ", "-")
        if quantize is not None:
            flags = [str(work / part) if part in RECIPES else part for part in quantize.split()]
            code, _, error = run(args.octet, "quantize", floats, source, *flags, "--no-judge", "--no-receipt", "--force")
            if code:
                sys.exit(f"octet quantize {quantize}: {error}")
        for form in formats:
            written = form.split(" ")[0]
            exported = work / f"{source.name}-{written}"
            code, _, error = run(args.octet, "export", source, "--format", written, "--out", exported, "--no-judge", "--force", *exporting.split())
            if code:
                failed = True
                print(f"| {name} | {form} | NOT EXPORTED: {error.splitlines()[-1]} |", flush=True)
                continue
            python = pythons.get(form, sys.executable)
            # How bitsandbytes rounds activations, octet reads from its own folder.
            held = exported if exporting or written == "bnb8" else source
            found = check(args.octet, held, exported, form, python, work, ids, quantize is not None and "a8" in quantize)
            failed |= line(name, form, found)
    sys.exit(failed)


if __name__ == "__main__":
    main()
