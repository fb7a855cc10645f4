"""What is printed survives its terminal, and errors are told truly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from multipass.files import ROOT
from multipass.terminal import one_sentence, printable

LINES = """
import sys
from tqdm import tqdm
from multipass.terminal import settle_streams
settle_streams()
print("first: Müller \\udcfc")
for k in range(20000):
    tqdm.write(f"line {k}")
print("at the end", file=sys.stderr)
"""


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_any_terminal_shows_any_name(encoding):
    environment = {"PYTHONIOENCODING": encoding}
    command = [sys.executable, "-c", LINES]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
    first = done.stdout.splitlines()[0].decode(encoding)
    assert first == {"ascii": "first: M\\xfcller \\udcfc"}.get(encoding, "first: Müller \\udcfc")
    assert done.returncode == 0 and done.stderr.endswith(b"at the end\n")


def test_a_reader_that_leaves_stops_nothing():
    command = f"{sys.executable} -c '{LINES}' | head -1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("first") and done.stderr == "at the end\n"


def test_a_full_disk_under_the_output_stops_nothing():
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-c", LINES]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 0 and done.stderr == b"at the end\n"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("two\n lines"), "two lines"),
        (OSError(28, "No space left on device", "a.csv"), "[Errno 28] No space left on device"),
        (
            OSError("tag: [Errno 28] No space left on device"),
            "no space left for the results or, in ",
        ),
        (RuntimeError("ITK ERROR: Write: Error writing a.nrrd"), "no space left for the results"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("x\nDefaultCPUAllocator: can't allocate memory"), "not enough memory (x"),
        (KeyError("k"), "unexpected KeyError: 'k'"),
        (ValueError(), "unexpected ValueError: "),
        (UnicodeEncodeError("ascii", "ä", 0, 1, "why"), "unexpected UnicodeEncodeError: "),
        (ValueError("a\udcfc: damaged"), "a\\udcfc: damaged"),
    ],
)
def test_errors_as_sentences(error, sentence):
    assert one_sentence(error).startswith(sentence)


def test_printable_text_is_left_as_it_is():
    assert printable("Müller 日本") == "Müller 日本"
    printable("M\udcfcller\ud800").encode()
