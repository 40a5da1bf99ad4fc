"""What a benchmark leaves behind: one JSON record that names its commit and its machine."""

import json
import platform
import shutil
import subprocess
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch

SCHEMA = 1
ROOT = Path(__file__).parents[1]


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


def write(path, record):
    """Write `record` to `path` as one line of JSON.

    Raises: ValueError if it holds NaN or infinity: a failed run is recorded as failed.
    """
    path = Path(path)
    text = json.dumps(record, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def commit():
    """The commit, whether a tracked file differs from it (both None without git), and the time."""
    head = output("git", "-C", ROOT, "rev-parse", "--short", "HEAD")
    changes = output("git", "-C", ROOT, "status", "--porcelain", "--untracked-files=no")
    utc = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"commit": head, "dirty": bool(changes) if head else None, "utc": utc}


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
