"""Run llama.cpp and octet alternately on the same shapes and threads; write a record of the comparison.

Usage: python compare.py --tools DIR --octet BIN --work DIR --out DIR --threads N --rounds N [--wrap CMD] NAME=MODEL_DIR ...

--tools  what setup.sh made        --work  where GGUF files and octet's folders go (kept for the next run)
--out    where README.md and results.json go; results of shapes that are not in this run are kept
--wrap   a command that every measured command is put behind, such as `nice -n -5`
--note   a paragraph for the record (repeatable)
--types  GGUF types to measure, with commas [all of Q8_0,Q4_0,Q4_K_M,IQ4_XS]

Every round runs each variant once, in a process of its own (warmed up: llama-bench by its own warm-up run, octet by the
prompt it measures memory with), every second round backwards. Ratios are taken within rounds.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys

TYPES = ["Q8_0", "Q4_0", "Q4_K_M", "IQ4_XS"]
SCHEMES = {"w8a8": "octet w8a8", "w4a8-g128-sym": "octet w4a8 g128"}
PROMPT, TOKENS = 512, 32
BF16 = "octet bf16"

# What is compared: octet's format, the phase, the peers' types of which the best counts, and the ratio aimed at by shape.
CONTESTS = [
    ("octet w8a8", "prefill", ["Q8_0"], {"qwen3-0.6b": 6.0}),
    ("octet w4a8 g128", "prefill", ["Q4_0", "Q4_K_M", "IQ4_XS"], {"qwen3-0.6b": 3.0, "llama-1b": 2.2, "medium-150m": 1.0}),
    ("octet w8a8", "decode", ["Q8_0"], {"qwen3-0.6b": 1.8, "medium-150m": 1.0}),
    ("octet w8a8", "decode", ["candle Q8_0"], {"qwen3-0.6b": 1.15, "medium-150m": 1.0}),
    ("octet w4a8 g128", "decode", ["Q4_0", "Q4_K_M"], {"qwen3-0.6b": 2.2, "llama-1b": 2.0, "medium-150m": 1.0}),
]
# Shares of the machine's limits aimed at, in percent (0.6B shape), and ratios to octet's own 16 bits.
SHARES = {("octet w8a8", "prefill"): 65, ("octet w4a8 g128", "prefill"): 60, ("octet w8a8", "decode"): 85, ("octet w4a8 g128", "decode"): 85, (BF16, "decode"): 85}
OWN = {"octet w8a8": 1.8, "octet w4a8 g128": 3.0}


def run(command, behind=()):
    done = subprocess.run([*behind, *command], capture_output=True, text=True)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise RuntimeError(f"`{short(command)}` ended with {done.returncode}: {said[-1][:200] if said else 'it said nothing'}")
    return done.stdout


def short(command):
    """A command as one would type it, without the folders of this machine."""
    return shlex.join(os.path.basename(word) if os.sep in word else word for word in command)


class Llama:
    """A GGUF type on one build of llama.cpp with repacking on or off."""

    def __init__(self, tools, build, kind, repack, file, threads):
        self.name = f"{kind}, {build}, repacking {'on' if repack else 'off'}"
        self.build, self.kind, self.file = build, kind, file
        self.command = [f"{tools}/bin/{build}/llama-bench", "-m", file, "-p", str(PROMPT), "-n", str(TOKENS)]
        self.command += ["-t", str(threads), "--repack", str(int(repack)), "-r", "1", "-o", "json"]

    def read(self, text):
        phases = {("prefill" if test["n_prompt"] else "decode"): test["avg_ts"] for test in json.loads(text)}
        return {phase: {"tok_s": rate} for phase, rate in phases.items()}


class Candle:
    """A GGUF file on candle."""

    def __init__(self, tools, kind, file, threads):
        self.name = self.kind = f"candle {kind}"
        self.build, self.file = "candle", file
        self.command = ["env", f"RAYON_NUM_THREADS={threads}", f"{tools}/bin/candle-bench", file, str(PROMPT), str(TOKENS)]

    def read(self, text):
        return json.loads(text)


class Octet:
    """A folder on octet."""

    def __init__(self, octet, name, folder, threads):
        self.name, self.build, self.kind, self.file = name, "octet", name, folder
        self.command = [octet, "bench", folder, "--prefill", str(PROMPT), "--decode", str(TOKENS), "--context", "0", "--batch", "1"]
        self.command += ["--reps", "1", "--threads", str(threads), "--json"]

    def read(self, text):
        one = json.loads(text)[0]
        phases = {phase: {"tok_s": one[phase][0]["tok_s"], "share": one[phase][0]["share"]} for phase in ("prefill", "decode")}
        return phases | {"limits": one["limits"], "peak_rss_mb": one["peak_rss_mb"], "first_token_ms": one["first_token_ms"]}


def prepare(args, shape, folder):
    """Files of every variant of a shape; what exists is used again."""
    os.makedirs(args.work, exist_ok=True)
    path = lambda name: os.path.join(args.work, f"{shape}-{name}")

    def made(target, build):
        if not os.path.exists(target):
            part = target + ".part"
            build(part)
            os.rename(part, target)
        return target

    note = lambda what: print(f"{shape}: {what}", file=sys.stderr, flush=True)
    octets = [Octet(args.octet, BF16, folder, args.threads)]
    for scheme, name in SCHEMES.items():
        note(f"octet quantize {scheme}")
        out = made(path(scheme), lambda part, scheme=scheme: run(
            [args.octet, "quantize", folder, part, "--scheme", scheme, "--no-judge", "--no-calibration", "--force"]))
        octets.append(Octet(args.octet, name, out, args.threads))
    here = os.path.dirname(os.path.abspath(__file__))
    bf16 = made(path("BF16.gguf"), lambda part: run([sys.executable, f"{here}/to_gguf.py", folder, part]))
    llamas = []
    builds = sorted(entry.name for entry in os.scandir(f"{args.tools}/bin") if entry.is_dir())
    for kind in args.types.split(","):
        note(f"llama-quantize {kind}")
        file = made(path(f"{kind}.gguf"), lambda part, kind=kind: run(
            [f"{args.tools}/bin/{builds[0]}/llama-quantize", bf16, part, kind, str(args.threads)]))
        for build in builds:
            # Without repacking AMX is not used either, so one build shows that.
            repack = [True] if build == "native" and "no-amx" in builds else [True, False]
            llamas += [Llama(args.tools, build, kind, on, file, args.threads) for on in repack]
        if kind == "Q8_0" and os.path.exists(f"{args.tools}/bin/candle-bench"):
            llamas.append(Candle(args.tools, kind, file, args.threads))
    return octets + llamas


def measure(args, shape, variants):
    """Rounds of readings by variant; a variant that fails is left out and says why."""
    rounds, failed = [], {}
    for number in range(args.rounds):
        readings = {}
        for variant in variants if number % 2 == 0 else variants[::-1]:
            if variant.name in failed:
                continue
            print(f"{shape}: round {number + 1} of {args.rounds}: {variant.name}", file=sys.stderr, flush=True)
            try:
                readings[variant.name] = variant.read(run(variant.command, shlex.split(args.wrap)))
            except (RuntimeError, KeyError, ValueError) as error:
                failed[variant.name] = str(error)
        rounds.append(readings)
    return rounds, failed


def size(path):
    files = [path] if os.path.isfile(path) else [entry.path for entry in os.scandir(path) if entry.is_file()]
    return sum(os.path.getsize(file) for file in files) / 1e6


def spread(values):
    """Median with the range in brackets."""
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def values(rounds, name, phase, what="tok_s"):
    return [r[name][phase][what] for r in rounds if name in r and what in r[name].get(phase, {})]


def contests(shape, result, builds):
    """Rows of the table of ratios: against the best variant of the given builds, paired within rounds."""
    rounds, rows = result["rounds"], []
    for ours, phase, kinds, targets in CONTESTS:
        theirs = [v["name"] for v in result["variants"] if v["kind"] in kinds and v["build"] in builds and values(rounds, v["name"], phase)]
        if kinds == ["candle Q8_0"]:
            theirs = [name for name in [kinds[0]] if values(rounds, name, phase)]
        if not theirs or not values(rounds, ours, phase):
            rows.append([ours, phase, f"{' or '.join(kinds)}: not measured", "", "", ""])
            continue
        missing = [kind for kind in kinds if not any(v["kind"] == kind for v in result["variants"])]
        best = max(theirs, key=lambda name: statistics.median(values(rounds, name, phase)))
        pairs = [r[ours][phase]["tok_s"] / r[best][phase]["tok_s"] for r in rounds if ours in r and best in r]
        ratio, target = statistics.median(pairs), targets.get(shape)
        # Against some of the peers only, an aim can be missed but not reached.
        passed = "open" if missing else "yes"
        reached = "" if target is None else (passed if ratio >= target else "**no**")
        against = best.replace(", native", "").replace(", no-amx", "") + (f" ({', '.join(missing)} not measured)" if missing else "")
        rows.append([ours, phase, against, f"{ratio:.2f}x ({min(pairs):.2f} to {max(pairs):.2f})", f"{target}x" if target else "", reached])
    return rows


def shares(shape, result):
    rounds, rows = result["rounds"], []
    for (name, phase), target in SHARES.items():
        found = [100 * share for share in values(rounds, name, phase, "share")]
        if found:
            middle = statistics.median(found)
            aimed = [f"{target} %", "yes" if middle >= target else "**no**"] if shape == "qwen3-0.6b" else ["", ""]
            rows.append([name, phase, f"{middle:.0f} % ({min(found):.0f} to {max(found):.0f})", *aimed])
    for name, target in OWN.items():
        pairs = [r[name]["decode"]["tok_s"] / r[BF16]["decode"]["tok_s"] for r in rounds if name in r and BF16 in r]
        if pairs:
            ratio = statistics.median(pairs)
            aimed = [f"{target}x", "yes" if ratio >= target else "**no**"] if shape == "qwen3-0.6b" else ["", ""]
            rows.append([name, "decode against octet's BF16", f"{ratio:.2f}x ({min(pairs):.2f} to {max(pairs):.2f})", *aimed])
    return rows


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def page(document):
    machine, amx = document["machine"], document["machine"]["amx"]
    out = ["# octet and llama.cpp on the same machine\n"]
    out.append(
        f"{document['date']}. {machine['cpu']}, {machine['threads']} threads, {machine['memory_gb']} GB, {machine['os']}; AMX: "
        f"{'yes' if amx else 'no'}. {document['versions']['octet']} (commit {document['versions']['commit']}), "
        f"llama.cpp from {document['versions']['llama.cpp']}.\n"
    )
    out.append(
        f"Made by `cargo xtask bench-peers`. Synthetic checkpoints in the shapes of real models; a prompt of {PROMPT} tokens, then {TOKENS} tokens decoded from an empty "
        "context, each run in a process of its own, all variants in turn, every second round backwards. Medians with the whole range in brackets; ratios are taken within "
        "rounds, against llama.cpp's best setting for that phase. Share: prefill against int8 arithmetic, decoding against a streaming read, both measured by octet beside "
        "its runs. Compare ratios and shares, not absolute figures: the machine is shared.\n"
    )
    out += [note + "\n" for note in document["notes"]]
    for shape, result in document["shapes"].items():
        rounds = result["rounds"]
        out.append(f"## {shape}\n\n{len(rounds)} rounds, load average {result['load']}.\n")
        rows = []
        for v in result["variants"]:
            if v["name"] in result["failed"]:
                rows.append([v["name"], f"{v['mb']:.0f}", "failed", "failed"])
            else:
                rows.append([v["name"], f"{v['mb']:.0f}", *(spread(values(rounds, v["name"], phase)) for phase in ("prefill", "decode"))])
        out.append(table(["variant", "MB", f"prefill {PROMPT}, tok/s", "decode, tok/s"], rows) + "\n")
        plain = {"no-amx"} if amx else {"native"}
        head = ["octet", "phase", "against", "ratio (range)", "aim", "reached"]
        if amx:
            out.append("Against llama.cpp built without AMX:\n\n" + table(head, contests(shape, result, plain)) + "\n")
            if all(v["name"] in result["failed"] for v in result["variants"] if v["build"] == "native"):
                out.append("llama.cpp built with everything this CPU has, AMX included, did not run; see below.\n")
            else:
                out.append("Against llama.cpp with everything this CPU has, AMX included:\n\n" + table(head, contests(shape, result, {"native", "no-amx"})) + "\n")
        else:
            out.append(table(head, contests(shape, result, plain)) + "\n")
        out.append(table(["octet", "phase", "reached (range)", "aim", "reached"], shares(shape, result)) + "\n")
        out += [f"{name} failed: {why}\n" for name, why in result["failed"].items()]
    out.append("## Not measured\n\nmistral.rs, ik_llama.cpp, torch; candle and types of llama.cpp that the tables do not show.\n")
    commands = "\n".join(f"    {command}" for command in document["commands"])
    out.append(f"## Commands\n\nFor each shape, in turn (paths shortened):\n\n{commands}\n")
    return "\n".join(out)


def machine(args):
    info = open("/proc/cpuinfo").read() if os.path.exists("/proc/cpuinfo") else ""
    field = lambda name: next((line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith(name)), "unknown")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "cpu": f"{field('model name')}, {os.cpu_count()} cores", "threads": args.threads, "memory_gb": round(memory),
        "os": platform.system(), "amx": "amx_int8" in info, "flags": sorted(f for f in field("flags").split() if f.startswith(("avx", "amx", "fma"))),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("--tools", "--octet", "--work", "--out"):
        parser.add_argument(flag, required=True, type=os.path.abspath)
    parser.add_argument("--threads", required=True, type=int)
    parser.add_argument("--rounds", required=True, type=int)
    parser.add_argument("--wrap", default="")
    parser.add_argument("--note", action="append", default=[])
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--prepare-only", action="store_true")
    parser.add_argument("shapes", nargs="+", metavar="NAME=MODEL_DIR")
    args = parser.parse_args()
    shapes = [shape.split("=", 1) for shape in args.shapes]
    prepared = {name: prepare(args, name, os.path.abspath(folder)) for name, folder in shapes}
    if args.prepare_only:
        return
    os.makedirs(args.out, exist_ok=True)
    store = os.path.join(args.out, "results.json")
    old = json.load(open(store))["shapes"] if os.path.exists(store) else {}
    sdist = next(iter(sorted(os.listdir(f"{args.tools}/sdist"))), "unknown").removesuffix(".tar.gz")
    document = {
        "date": datetime.date.today().isoformat(), "machine": machine(args),
        "versions": {"octet": run([args.octet, "--version"]).strip(), "commit": args.commit, "llama.cpp": sdist, "python": platform.python_version()},
        "commands": [], "notes": args.note, "shapes": old,
    }
    for name, variants in prepared.items():
        rounds, failed = measure(args, name, variants)
        listed = [{"name": v.name, "build": v.build, "kind": v.kind, "mb": round(size(v.file), 1)} for v in variants]
        load = " ".join(f"{value:.1f}" for value in os.getloadavg())
        document["shapes"][name] = {"rounds": rounds, "variants": listed, "failed": failed, "load": load}
        document["commands"] = [short(v.command) for v in variants]
        with open(store, "w") as file:
            json.dump(document, file, indent=1)
        with open(os.path.join(args.out, "README.md"), "w") as file:
            file.write(page(document))
    print(page(document))


if __name__ == "__main__":
    main()
