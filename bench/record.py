"""What a benchmark leaves behind: JSON records that name their commit and their machine.

A file has one record a line. It is written beside itself and renamed, so that no reader ever meets
half of one, and a disk that is full leaves what was there.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import tempfile
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch

SCHEMA = 1
ROOT = Path(__file__).parents[1]


class RecordError(Exception):
    """A file that holds no records: which, and why."""


def new_record(name, device, case, runs):
    """A benchmark's record: `case` is what its runs share, `runs` has one per implementation."""
    return {
        "schema": SCHEMA,
        "name": name,
        **commit(),
        "env": environment(device),
        "case": case,
        "runs": runs,
    }


def write(path, *records):
    """Write `records` to `path`, a line of JSON each.

    Raises: ValueError if one holds NaN or infinity: a failed run is recorded as failed; OSError if
        the file cannot be written; it is then as it was.
    """
    lines = [json.dumps(record, allow_nan=False) + "\n" for record in records]
    replace(path, "".join(lines).encode())


def replace(path, content):
    """Give the file at `path` this content, bytes, whole or not at all; makes its folder.

    Raises: OSError, which names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder: a rename is one step within one file system only.
    handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        # mkstemp's files are the user's alone.
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except OSError as error:
        os.unlink(beside)
        raise OSError(error.errno, error.strerror, str(path)) from None


def read(path):
    """The records in a file.

    Raises: RecordError if it is missing or holds anything else.
    """
    try:
        records = [json.loads(line) for line in Path(path).read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: {error}") from None
    for record in records:
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            raise RecordError(f"{path}: not a record of schema {SCHEMA}")
    if not records:
        raise RecordError(f"{path}: no record in it")
    return records


def writable(text):
    """An argument of a command line that names a file to write later, refused now if it cannot be.

    Raises: argparse.ArgumentTypeError.
    """
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder")
    writable_folder(path.absolute().parent)
    return path


def writable_folder(text):
    """An argument of a command line that names a folder to fill later, which need not be there.

    Raises: argparse.ArgumentTypeError.
    """
    path = Path(text)
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        raise argparse.ArgumentTypeError(f"{nearest} is no folder")
    if not os.access(nearest, os.W_OK):
        raise argparse.ArgumentTypeError(f"{nearest} cannot be written to")
    return path


def commit():
    """The commit, whether a tracked file differs from it, and the time.

    Files without git have the first two from the environment variable FUSED_LSTM_COMMIT, as
    `git describe --always --dirty --exclude='*'` prints it where they come from; else None.
    """
    described = output("git", "-C", ROOT, "describe", "--always", "--dirty", "--exclude=*")
    described = described or os.environ.get("FUSED_LSTM_COMMIT") or None
    head, _, dirty = (described or "").partition("-")
    utc = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"commit": head or None, "dirty": dirty != "" if head else None, "utc": utc}


def environment(device):
    """The card or the processor that `device` names, and the versions of what computes on it."""
    versions = {"torch": torch.__version__, "triton": version("triton")}
    if torch.device(device).type != "cuda":
        return {"cpu": cpu_name(), "threads": torch.get_num_threads(), **versions}
    return {
        "gpu": torch.cuda.get_device_name(device),
        "driver": output(
            "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"
        ),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        **versions,
    }


def cpu_name():
    """The processor as Linux names it, elsewhere as Python does."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def output(*command):
    """What `command` prints, or None where it fails or is not installed."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
