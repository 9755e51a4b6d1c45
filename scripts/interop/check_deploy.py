"""Start the servers that a hand-over (`octet export --deploy`) names, by the commands it gives, and have them continue a text.

Usage: python check_deploy.py OCTET DEPLOY_DIR MODEL TOKENIZER PROMPT [--bin DIR]...

OCTET       the octet binary
DEPLOY_DIR  the folder with the hand-over's README.md
MODEL       what octet opens of the same export: the GGUF file or the folder
TOKENIZER   the model's tokenizer.json
PROMPT      a text to be continued
--bin       where llama-server, mlx_lm.server and others lie; servers that are nowhere are left out, and said to be

Needs numpy and tokenizers. Each command of the page is run as it stands, in the folder, with a port added; the server answers on
/v1/completions. Each of its 24 greedy tokens must be the one that octet would choose after those before it, or as likely within MARGIN (servers
compute in 16 bits). Files for servers that cannot run here are held against the schema of the package that reads them, where it is
installed (ray[serve], kserve), and stay unverified. Exit code 1 where a server does not start or continues otherwise.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

PORT = 18080
TOKENS = 24
MARGIN = 0.25
# Servers that run on a CPU.
STARTED = ("llama.cpp", "mlx-lm")


def ask(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())


def served(command, folder, prompt):
    """What the server that `command` starts makes of the prompt."""
    server = subprocess.Popen([*shlex.split(command), "--port", str(PORT)], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        for _ in range(120):
            if server.poll() is not None:
                return None, server.stdout.read().decode(errors="replace")[-400:]
            try:
                ask("/health")
                break
            except OSError:
                time.sleep(1)
        else:
            return None, "it does not answer"
        answer = ask("/v1/completions", {"model": "default_model", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0})
        return answer["choices"][0]["text"], ""
    finally:
        server.terminate()
        server.wait()


def behind(octet, model, tokenizer, prompt, text):
    """How many tokens the text has, how many of them octet would choose, and how far the logit of one is below the largest at most."""
    ids = Tokenizer.from_file(tokenizer).encode(prompt + text).ids
    first = len(Tokenizer.from_file(tokenizer).encode(prompt).ids)
    with tempfile.TemporaryDirectory() as work:
        np.save(f"{work}/ids.npy", np.array([ids], np.int64))
        subprocess.run([octet, "logits", model, "--ids", f"{work}/ids.npy", f"{work}/logits.npy"], check=True, capture_output=True)
        logits = np.load(f"{work}/logits.npy").reshape(len(ids), -1)
    gaps = [float(logits[at - 1].max() - logits[at - 1][ids[at]]) for at in range(first, len(ids))]
    return len(gaps), sum(gap == 0 for gap in gaps), max(gaps)


def check_files(folder):
    """Lines about manifests, each held against the schema of the package that reads it."""
    if (folder / "ray_serve.yaml").exists():
        try:
            import yaml
            from ray.serve.schema import ServeDeploySchema
        except ImportError:
            yield "ray_serve.yaml: ray[serve] is not installed", False
        else:
            ServeDeploySchema.model_validate(yaml.safe_load((folder / "ray_serve.yaml").read_text()))
            yield "ray_serve.yaml: ray's schema takes it; unverified beyond that", False
    if (folder / "kserve.yaml").exists():
        try:
            import yaml
            from kserve import V1beta1InferenceService
        except ImportError:
            yield "kserve.yaml: kserve is not installed", False
        else:
            unknown = list(unread(yaml.safe_load((folder / "kserve.yaml").read_text()), V1beta1InferenceService))
            yield f"kserve.yaml: {'keys that kserve does not have: ' + ', '.join(unknown) if unknown else 'kserve has every key; unverified beyond that'}", bool(unknown)
    if (folder / "Modelfile").exists():
        lines = (folder / "Modelfile").read_text().splitlines()
        target = next(line.split(None, 1)[1] for line in lines if line.startswith("FROM "))
        good = (folder / target).exists() and all(re.fullmatch(r"(FROM \S+|PARAMETER num_ctx \d+)", line) for line in lines)
        yield f"Modelfile: {'its weights are there; unverified beyond that' if good else 'bad: ' + ' | '.join(lines)}", not good


def unread(value, kind):
    """Keys that a class of kserve's client does not have."""
    import kserve
    names = {json_name: (attribute, kind.openapi_types[attribute]) for attribute, json_name in kind.attribute_map.items()}
    for key, inner in value.items():
        if key not in names:
            yield key
        elif isinstance(inner, dict) and hasattr(kserve, names[key][1]):
            yield from unread(inner, getattr(kserve, names[key][1]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("octet", "deploy", "model", "tokenizer", "prompt"):
        parser.add_argument(name)
    parser.add_argument("--bin", action="append", default=[])
    args = parser.parse_args()
    os.environ["PATH"] = os.pathsep.join([*args.bin, os.environ["PATH"]])
    folder, failed = Path(args.deploy), False
    for server, command in re.findall(r"^\| ([^|]+) \| `([^`]+)` \|", (folder / "README.md").read_text(), re.M):
        if server not in STARTED or not shutil.which(shlex.split(command)[0]):
            print(f"{server}: not started here, unverified ({command})")
            continue
        text, why = served(command, folder, args.prompt)
        if text is None:
            failed = True
            print(f"{server}: DOES NOT START ({command}): {why}")
            continue
        # Some servers leave a leading space out of what they answer.
        readings = [behind(args.octet, args.model, args.tokenizer, args.prompt, space + text) for space in ("", " ")]
        count, chosen, gap = min(readings, key=lambda reading: reading[2])
        failed |= gap > MARGIN
        print(f"{server}: {chosen} of {count} tokens are octet's first choice, the others {gap:.3f} behind at most"
              f"{'' if gap <= MARGIN else ' OTHERWISE'} ({command}): {text!r}", flush=True)
    for said, bad in check_files(folder):
        failed |= bad
        print(said)
    sys.exit(failed)


if __name__ == "__main__":
    main()
