"""Every ingredient of the solvers on and off, at 3, 4 and 5 bits: quantizes, judges, prints a table.

Usage: python ablation.py OCTET REFERENCE OUT [MODEL...]

REFERENCE holds models/NAME and corpus/technical, corpus/tinystories; OUT gets a folder a run. What OUT already has is not run again.
"""

import json
import pathlib
import struct
import subprocess
import sys

MODELS = {"stories260K": (64, 400), "babyllama-105": (256, 150), "pocket": (64, 100)}
TABLE = 4


def quantize(scheme, targets="'linears'", **keys):
    return {"action": "'quantize'", "targets": f"[{targets}]", "scheme": f"'{scheme}'", **keys}


def rows(bits, steps):
    """Name, steps of the recipe."""
    even, table = f"w{bits}a16-g32", "w4ta16-g32"
    rtn = lambda scheme=even, **keys: [quantize(scheme, solver="'rtn'", **keys)]
    gptq = lambda scheme=even, **keys: [quantize(scheme, solver="'gptq'", **keys)]
    awq = [{"action": "'awq'", "targets": "['linears']"}]
    rates = lambda scales=0.0, norms=0.0, codes=0.0, own=0: [
        {"action": "'distill'", "steps": steps, "scales": scales, "norms": norms, "codes": codes, "own_text": own * steps * 1024}
    ]
    both = dict(scales=0.003, norms=0.001)
    all_of_it = rates(**both, codes=0.015, own=1)
    yield "rounding to nearest, largest weight decides the scale", rtn(candidates=1)
    yield "rounding to nearest, scale searched", rtn()
    yield "AWQ, rounding to nearest", awq + rtn()
    yield "GPTQ, target: the weights; inputs in order", gptq(asymmetric="false", refine=0, act_order="'none'")
    yield "GPTQ, target: the weights", gptq(asymmetric="false", refine=0)
    yield "GPTQ, target: the weights; refined", gptq(asymmetric="false")
    yield "AWQ, then GPTQ, target: the weights; refined", awq + gptq(asymmetric="false")
    yield "GPTQ, target from the original", gptq(refine=0)
    yield "GPTQ, target from the original; refined", gptq()
    yield "GPTQ, target from the original; refined; inputs in order", gptq(act_order="'none'")
    if bits == TABLE:
        yield "table: rounding to nearest, scale searched", rtn(table)
        yield "table: GPTQ, target from the original, refined", gptq(table)
    yield "mixed, as many bits in all", None
    yield "refined, learns: scales", gptq() + rates(scales=0.003)
    yield "refined, learns: norms", gptq() + rates(norms=0.001)
    yield "refined, learns: scales, norms", gptq() + rates(**both)
    yield "refined, learns: scales, norms, codes", gptq() + rates(**both, codes=0.015)
    yield "refined, learns: scales, norms, codes, own text", gptq() + all_of_it
    if bits == TABLE:
        yield "table: refined, learns: scales, norms, codes, own text", gptq(table) + all_of_it
    blocks = rates(**both, codes=0.015)
    blocks[0] = {"block_steps": steps // 2, **blocks[0], "steps": steps // 2}
    yield "refined, learns: scales, norms, codes; half of the steps block by block", gptq() + blocks


def stored_bits(folder):
    """Bits a weight of all matrices, scales and shapes as stored."""
    size, weights = 0, 0
    data = (folder / "model.safetensors").read_bytes()
    head = struct.unpack_from("<Q", data)[0]
    for name, tensor in json.loads(data[8 : 8 + head]).items():
        if name == "__metadata__" or name.endswith("norm.weight"):
            continue
        start, end = tensor["data_offsets"]
        size += end - start
        if name.endswith("weight_shape"):
            kind = "<2q" if end - start == 16 else "<2i"
            rows, cols = struct.unpack_from(kind, data, 8 + head + start)
            weights += rows * cols
    return 8 * size / weights


def run(octet, reference, out, model, bits, number, steps):
    folder, log = out / f"{model}-{bits}-{number}", out / f"{model}-{bits}-{number}.log"
    result = folder.with_suffix(".json")
    if result.exists():
        return json.loads(result.read_text())
    table = quantize("w8a16", "'embedding', 'head'")
    if steps is None:
        budget = stored_bits(out / f"{model}-{bits}-1") + 1e-6
        steps = [{"action": "'mixed'", "targets": "['linears']", "bits_per_weight": budget}, table]
    else:
        # Learning comes last.
        steps = [s for s in steps if "steps" not in s] + [table] + [s for s in steps if "steps" in s]
    recipe = folder.with_suffix(".toml")
    recipe.write_text("\n".join("[[step]]\n" + "\n".join(f"{key} = {value}" for key, value in step.items()) for step in steps))
    text = "technical" if model == "pocket" else "tinystories"
    calibration, test = ("valid.jsonl", "test.jsonl") if model == "pocket" else ("calibration.txt", "evaluation.txt")
    base, corpus = reference / "models" / model, reference / "corpus" / text
    shared = ["--threads", "1", "--reference-cache", out / "cache"]
    how = ["--recipe", recipe, "--no-judge", "--calibration", corpus / calibration, "--calibration-samples", MODELS[model][0]]
    call = lambda *args: subprocess.run([str(arg) for arg in args], stdout=subprocess.PIPE, stderr=log.open("a"), text=True, check=True)
    call(octet, "quantize", base, folder, *how, "--force", *shared)
    window = ["--context", 512, "--eval-tokens", 102400] if model == "pocket" else ["--eval-tokens", 98304]
    judged = call(octet, "eval", folder, "--base", base, "--eval-text", corpus / test, *window, "--json", *shared)
    measures = json.loads(judged.stdout)["measures"]
    measures["bits"] = stored_bits(folder)
    result.write_text(json.dumps(measures))
    return measures


def main(octet, reference, out, *models):
    out.mkdir(parents=True, exist_ok=True)
    runs = [
        (model, bits, number, name, steps)
        for model in models or MODELS
        for bits in (4, 3, 5)
        for number, (name, steps) in enumerate(rows(bits, MODELS[model][1]))
    ]
    # What takes minutes comes last.
    slow = lambda run: run[4] is None or any("steps" in step for step in run[4])
    table = {}
    for model, bits, number, name, steps in sorted(runs, key=slow):
        measures = run(octet, reference, out, model, bits, number, steps)
        ppl, kl = 100 * (measures["ppl"]["ratio"] - 1), measures["kl"]["mean"]
        table.setdefault(model, {}).setdefault(name, {})[bits] = f"{ppl:+.2f} %, {kl:.5f}"
    for model, names in table.items():
        print(f"\n| {model} | 3 bits | 4 bits | 5 bits |\n|---|---|---|---|")
        for name, cells in names.items():
            print("|", name, "|", " | ".join(cells.get(bits, "") for bits in (3, 4, 5)), "|")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*map(pathlib.Path, sys.argv[1:4]), *sys.argv[4:])
