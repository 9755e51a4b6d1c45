#!/usr/bin/env python3
"""Makes the `hardware` documents of calibration.jsonl and evaluation.jsonl from pci.ids.

Each device of pci.ids becomes one sentence, the form the model `pocket` was trained on:

    PCI device 8086:10d3 is 82574L Gigabit Network Connection by Intel Corporation.

A document holds up to 40 consecutive devices of one vendor and is named pci/VENDOR/OFFSET.

- Evaluation takes the vendors of HELD_OUT: no sentence of theirs stands in the training
  text of `pocket`, so that the model is judged on hardware it has not read about.
- Calibration draws documents of the other vendors with SEED, at most MAX_PER_VENDOR each,
  until CALIBRATION_SENTENCES are reached. The vendors of the two texts are thus disjoint.

The script replaces the hardware lines of both files and leaves the hand-written lines as
they are, then orders the lines by a hash of their names, so that kinds alternate. Running
it twice gives the same bytes. It needs only the Python standard library and a pci.ids file
(Debian package `pci.ids`; the files in this folder were made from version 2023.04.10 of the list):

    python3 make_hardware.py [--pci-ids /usr/share/misc/pci.ids] [--check]
"""

import argparse
import hashlib
import json
import pathlib
import random
import re
import sys

SEED = 20261120
SENTENCES_PER_DOCUMENT = 40
MAX_PER_VENDOR = 2
MIN_DEVICES = 4  # a vendor with fewer gives a document too short to have a style
CALIBRATION_SENTENCES = 770

HELD_OUT = """
1004 100c 100e 101a 1043 1045 1078 1095 109e 10ad 10cd 10dc 111a 115d 1186 122d
126f 12c5 12c7 12d8 1382 13c0 13c1 13d1 13f0 13fe 1407 1435 144d 1498 14c3 14f3
1524 1590 15d9 1618 168a 16ab 1760 18ca 1912 1923 1969 1974 1c2c 1ce4 1d1c 1d37
1e24 37d9 8088 9710
""".split()

VENDOR = re.compile(r"^([0-9a-f]{4})  (.+)$")
DEVICE = re.compile(r"^\t([0-9a-f]{4})  (.+)$")


def read_vendors(path):
    """Returns {vendor id: [sentence, ...]} in the order of the file."""
    vendors, vendor, name = {}, None, None
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("C "):  # device classes follow the vendors
            break
        if match := VENDOR.match(line):
            vendor, name = match[1], match[2].strip()
            vendors[vendor] = []
        elif match := DEVICE.match(line):
            device = match[2].strip()
            vendors[vendor].append(f"PCI device {vendor}:{match[1]} is {device} by {name}.")
    return vendors


def documents(vendor, sentences):
    """Cuts a vendor's sentences into documents."""
    for start in range(0, len(sentences), SENTENCES_PER_DOCUMENT):
        chunk = sentences[start : start + SENTENCES_PER_DOCUMENT]
        text = "\n".join(chunk) + "\n"
        yield {"kind": "hardware", "name": f"pci/{vendor}/{start}", "text": text}


def draw_calibration(vendors):
    """Draws the calibration documents among the vendors that are not held out."""
    pool = [
        document
        for vendor, sentences in sorted(vendors.items())
        if vendor not in HELD_OUT and len(sentences) >= MIN_DEVICES
        for document in documents(vendor, sentences)
    ]
    random.Random(SEED).shuffle(pool)
    chosen, taken, total = [], {}, 0
    for document in pool:
        vendor = document["name"].split("/")[1]
        if taken.get(vendor, 0) == MAX_PER_VENDOR:
            continue
        taken[vendor] = taken.get(vendor, 0) + 1
        chosen.append(document)
        total += document["text"].count("\n")
        if total >= CALIBRATION_SENTENCES:
            break
    return chosen


def position(document):
    """A fixed pseudo-random place in the file."""
    return hashlib.sha256(f"{SEED} {document['name']}".encode()).hexdigest()


def merged(path, hardware):
    """The file's lines with its hardware documents replaced."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    written = [d for d in map(json.loads, lines) if d["kind"] != "hardware"]
    ordered = sorted(written + hardware, key=position)
    return "".join(json.dumps(d, ensure_ascii=False) + "\n" for d in ordered)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pci-ids", type=pathlib.Path, default="/usr/share/misc/pci.ids")
    parser.add_argument("--check", action="store_true", help="change nothing, report differences")
    arguments = parser.parse_args()

    vendors = read_vendors(arguments.pci_ids)
    held = [d for v in HELD_OUT for d in documents(v, vendors.get(v, []))]
    here = pathlib.Path(__file__).parent
    stale = False
    for name, hardware in (("calibration", draw_calibration(vendors)), ("evaluation", held)):
        path = here / f"{name}.jsonl"
        text = merged(path, hardware)
        if arguments.check:
            same = path.exists() and path.read_text(encoding="utf-8") == text
            stale |= not same
            print(f"{path.name}: {'as generated' if same else 'differs'}")
        else:
            path.write_text(text, encoding="utf-8")
            print(f"{path.name}: {len(hardware)} hardware documents")
    sys.exit(1 if stale else 0)


if __name__ == "__main__":
    main()
