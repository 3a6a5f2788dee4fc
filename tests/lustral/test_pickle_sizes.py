"""A few bytes that ask for gigabytes are refused before anything is set aside."""

import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.pickles import read_array_pickle
from lustral.networks.importing.inert_pickle import read_inert
from lustral.networks.importing.reading import read_torch, tensors_of

GIGABYTES = struct.pack("<Q", 2**36)
ASKING = {
    "memo": b"\x80\x04r\xff\xff\xff\x7f.",
    "bytearray": b"\x80\x05\x96" + GIGABYTES + b"x.",
    "bytes": b"\x80\x04\x8e" + GIGABYTES + b".",
    "text": b"\x80\x04\x8d" + GIGABYTES + b".",
    "frame": b"\x80\x04\x95" + GIGABYTES + b"N.",
    "number": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".",
}


@pytest.mark.parametrize("read", [read_inert, read_array_pickle])
@pytest.mark.parametrize("name", ASKING)
def test_pickles_of_a_few_bytes(name: str, read, tmp_path: Path) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(ASKING[name])
    with pytest.raises(ValueError, match=r"file\.pkl .*(numbers an object|announces|but only|not enough data)"):
        read(path)


@pytest.mark.parametrize(
    "content",
    [b"\x80\x02cnumpy\nndarray\nJ\x00\x00\x00\x40\x85R.", b"\x80\x02cnumpy\nndarray\nJ\x00\x00\x00\x40\x85\x81."],
    ids=["called", "made"],
)
def test_an_array_without_its_content(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as a pickle of arrays"):
        read_array_pickle(path)
    path.write_bytes(
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nJ\x00\x00\x00\x40\x85C\x01b\x87R."
    )
    with pytest.raises(ValueError, match="without its content"):
        read_array_pickle(path)


@pytest.mark.parametrize("protocol", range(5))  # 5 has arrays outside of the pickle
def test_arrays_are_read_as_they_were(protocol: int, tmp_path: Path) -> None:
    content = {"data": np.arange(600, dtype=np.uint8).reshape(2, 300), "labels": list(range(300)), "x": b"\xff\x00"}
    path = tmp_path / "file.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    found = read_array_pickle(path)
    assert np.array_equal(found["data"], content["data"])
    assert (found["labels"], found["x"]) == (content["labels"], content["x"])


def test_tensors_of_more_numbers_than_are_stored(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save({"w": torch.zeros(1).expand(10**6, 10**6), "b": torch.zeros(3, 4).t()}, path)
    with pytest.raises(ValueError, match=r"file\.pt holds tensors of more numbers than are stored \(w\)"):
        tensors_of(read_torch(path), "file.pt")


def test_a_compressed_file_of_torch(tmp_path: Path) -> None:
    path, packed = tmp_path / "file.pt", io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    path.write_bytes(packed.getvalue())
    with pytest.raises(ValueError, match=r"file\.pt would unpack to 1,000,000 bytes"):
        read_torch(path)
