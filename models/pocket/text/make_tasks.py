#!/usr/bin/env python3
"""Makes tasks.jsonl, questions about facts that the model `pocket` has read, from pci.ids.

Each question gives a device by number and name and asks which of four vendors makes it:

    PCI device 8086:10d3 is 82574L Gigabit Network Connection by
        " Intel Corporation." or three others

The vendors are the VENDORS with the most devices, none of them held out for the evaluation text (see
make_hardware.py), QUESTIONS_PER_VENDOR devices each, drawn with SEED among those that stand in neither built-in text.
Running it twice gives the same bytes. It needs only the Python standard library and a pci.ids file
(Debian package `pci.ids`; the file in this folder was made from version 2023.04.10 of the list):

    python3 make_tasks.py [--pci-ids /usr/share/misc/pci.ids] [--check]
"""

import argparse
import json
import pathlib
import random
import sys

from make_hardware import HELD_OUT, read_vendors

SEED = 20261121
VENDORS = 24
QUESTIONS_PER_VENDOR = 20
CHOICES = 4


def questions(vendors, shown):
    """Returns the questions in a drawn order."""
    draw = random.Random(SEED)
    sizes = sorted((v for v in vendors if vendors[v] and v not in HELD_OUT), key=lambda v: (-len(vendors[v]), v))
    known, names = [], set()
    for vendor in sizes:
        name = vendors[vendor][0].rsplit(" by ", 1)[1]
        # One number a name: the answer must be the only right one.
        if name not in names and len(known) < VENDORS:
            names.add(name)
            known.append((vendor, name))
    asked = []
    for vendor, name in known:
        own = [s for s in vendors[vendor] if s not in shown and s.endswith(f" by {name}")]
        for sentence in draw.sample(own, QUESTIONS_PER_VENDOR):
            others = draw.sample([n for _, n in known if n != name], CHOICES - 1)
            choices = [f" {n}" for n in others]
            answer = draw.randrange(CHOICES)
            choices.insert(answer, f" {name}")
            prompt = sentence[: -len(name) - 1]
            asked.append({"prompt": prompt, "choices": choices, "answer": answer})
    draw.shuffle(asked)
    return asked


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--pci-ids", type=pathlib.Path, default=pathlib.Path("/usr/share/misc/pci.ids"))
    arguments.add_argument("--check", action="store_true", help="compare, write nothing")
    given = arguments.parse_args()
    here = pathlib.Path(__file__).parent
    shown = set()
    for name in ["calibration.jsonl", "evaluation.jsonl"]:
        for line in (here / name).read_text(encoding="utf-8").splitlines():
            shown.update(json.loads(line)["text"].splitlines())
    asked = questions(read_vendors(given.pci_ids), shown)
    text = "".join(json.dumps(question, ensure_ascii=False) + "\n" for question in asked)
    path = here / "tasks.jsonl"
    if given.check:
        same = path.is_file() and path.read_text(encoding="utf-8") == text
        print("as the script would write it" if same else "differs from what the script would write")
        sys.exit(0 if same else 1)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
