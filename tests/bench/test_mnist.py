"""MNIST arrives whole, from files that are checked, or not at all."""

import re
import shutil
import socket

import pytest
import torch

from bench import mnist


@pytest.fixture(scope="module")
def shipped():
    return mnist.load()


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """bench/data at a place where files may be damaged."""
    folder = tmp_path / "data"
    shutil.copytree(mnist.DATA, folder)
    monkeypatch.setattr(mnist, "DATA", folder)
    return folder


@pytest.fixture
def root(tmp_path):
    """The folder that torchvision's own download would leave."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in mnist.MD5:
        (raw / name).write_bytes(mnist.read(name))
    return tmp_path


def test_shipped_files_are_the_whole_of_mnist(shipped):
    for (images, labels), count in zip(shipped, (60_000, 10_000), strict=True):
        assert images.shape == (count, 28, 28)
        assert images.dtype == torch.float32
        assert (images.min(), images.max()) == (0, 1)
        assert labels.shape == (count,)
        assert labels.unique().tolist() == list(range(10))
    assert [labels[0].item() for _, labels in shipped] == [5, 7]


def test_loading_needs_no_network_and_leaves_the_folder_alone(monkeypatch):
    def refuse(*_):
        raise AssertionError("load() opened a socket")

    before = sorted(mnist.DATA.iterdir())
    monkeypatch.setattr(socket.socket, "connect", refuse)
    mnist.load()
    assert sorted(mnist.DATA.iterdir()) == before


def test_torchvision_root_gives_the_same_images(root, shipped):
    for ours, theirs in zip(mnist.load(root), shipped, strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


def test_readme_states_the_md5_that_is_checked():
    readme = (mnist.DATA / "README.md").read_text()
    for name, md5 in mnist.MD5.items():
        assert re.search(rf"^\| {name} .* {md5} \|$", readme, re.MULTILINE), name


def remove(path):
    path.unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def replace_by_a_web_page(path):
    path.write_bytes(b"<html>404 Not Found</html>")


DAMAGES = [remove, truncate, empty, flip_a_bit, replace_by_a_web_page]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["t10k-labels-idx1-ubyte", "train-images-idx3-ubyte"])
def test_unusable_shipped_file_is_named_with_a_remedy(name, damage, copies):
    path = copies / f"{name}.gz"
    damage(path)
    with pytest.raises(mnist.DataError) as error:
        mnist.load()
    assert str(path) in str(error.value)
    assert "git checkout bench/data" in str(error.value)


@pytest.mark.parametrize("damage", DAMAGES)
def test_unusable_file_of_a_root_is_named_with_a_remedy(damage, root):
    path = root / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    damage(path)
    with pytest.raises(mnist.DataError) as error:
        mnist.load(root)
    assert str(path) in str(error.value)
    assert "download=True" in str(error.value)
