"""MNIST as tensors, from bench/data or a torchvision root, and never from the network.

Each file is compared with its published md5 before torchvision reads it, so that a wrong byte is an
error and not an odd accuracy. torchvision gets copies in a temporary folder: the checkout may be
read-only, two processes may start at once, and nothing else that lies in a root is read.
"""

import gzip
import hashlib
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

DATA = Path(__file__).parent / "data"
# Of the unpacked files: two gzip programs pack the same bytes differently.
MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


class DataError(Exception):
    """A file of MNIST cannot be used; the message names it and says what to do."""


def load(data_root=None):
    """The training set and the test set, each as (images, labels) on the CPU.

    Shapes: images (N, 28, 28) float32, pixels / 255 as torchvision's ToTensor has them; labels (N,)
        int64; N is 60,000 and 10,000.
    Raises: DataError if a file is missing, truncated or damaged.
    """
    # Here, because it imports Triton, which reads TRITON_INTERPRET once: a script may still set it.
    from torchvision.datasets import MNIST

    with TemporaryDirectory() as root:
        raw = Path(root, "MNIST", "raw")
        raw.mkdir(parents=True)
        for name in MD5:
            (raw / name).write_bytes(read(name, data_root))
        sets = [MNIST(root, train=train) for train in (True, False)]
    return tuple((images.data.float() / 255, images.targets) for images in sets)


def read(name, data_root=None):
    """The verified bytes of one unpacked file, from bench/data or from MNIST/raw in `data_root`."""
    if data_root is None:
        path = DATA / f"{name}.gz"
        remedy = "restore it with `git checkout bench/data`, or name another copy with --data-root"
    else:
        path = Path(data_root).expanduser() / "MNIST" / "raw" / name
        remedy = "fetch it with torchvision.datasets.MNIST(download=True), or omit --data-root"
    if not path.is_file():
        raise DataError(f"{path} is missing: {remedy}")
    try:
        content = path.read_bytes() if data_root else gzip.decompress(path.read_bytes())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is truncated or damaged ({error}): {remedy}") from error
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 != MD5[name]:
        raise DataError(f"{path} is damaged, its md5 is {md5} and not {MD5[name]}: {remedy}")
    return content
