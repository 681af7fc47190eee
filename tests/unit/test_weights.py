"""Safetensors files, whole and in pieces: read as they were written, refused where they are not."""

import json
import struct
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from redraft.models import folder as folders
from redraft.models import weights
from redraft.models.weights import Piece, Shards, fill, fits, stored, write_weights


class Network(nn.Module):
    """Weights of every kind: whole, fused, stacked, a scalar, an empty one, and buffers that are stored and not."""

    def __init__(self, rows=(3, 2, 4), width=5, experts=3):
        super().__init__()
        for name, count in zip("qkv", rows, strict=True):
            self.register_parameter(name, nn.Parameter(torch.randn(count, width)))
        self.up = nn.Parameter(torch.randn(experts, 4, width))
        self.table = nn.Parameter(torch.randn(11, width))
        self.scale = nn.Parameter(torch.randn(()))
        self.none = nn.Parameter(torch.randn(0, width))
        self.register_buffer("graph", torch.arange(4))
        self.register_buffer("bias", torch.randn(experts, dtype=torch.float64))
        self.register_buffer("angles", torch.arange(2.0), persistent=False)


def pieces(order=None, rows=(3, 2, 4), experts=3):
    """q, k and v in one tensor, one after the other or in the given ``order`` of rows; experts apart."""
    ends = [sum(rows[:i]) for i in range(4)]
    fused = [slice(a, b) if order is None else torch.tensor(order)[a:b] for a, b in pairwise(ends)]
    found = [Piece("qkv", name, rows=part) for name, part in zip("qkv", fused, strict=True)]
    found += [Piece(f"experts.{i}.up", "up", at=i) for i in range(experts)]
    return found + [Piece(f"the.{name}", name) for name in ("table", "scale", "none", "graph", "bias")]


def empty(**sizes):
    with torch.device("meta"):
        made = Network(**sizes)
    made.angles = torch.arange(2.0)
    return made


def write(folder, network, how, **files):
    """Its tensors as files have them; ``files`` names those of several, with an index."""
    tensors = {key: value.detach().contiguous() for key, value in stored(network.state_dict(), how).items()}
    if not files:
        save_file(tensors, folder / "model.safetensors")
        return tensors
    where = {key: next((file for file, keys in files.items() if key in keys), "rest") for key in tensors}
    for file in set(where.values()):
        save_file({key: tensors[key] for key in tensors if where[key] == file}, folder / f"{file}.safetensors")
    index(folder, {key: f"{file}.safetensors" for key, file in where.items()})
    return tensors


def index(folder, where, **more):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where, **more}))


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


# ---------------------------------------------------------------------------------------------- there and back again


@settings(max_examples=20, deadline=None)
@given(
    rows=st.tuples(*[st.integers(1, 5)] * 3),
    width=st.integers(1, 6),
    experts=st.integers(1, 4),
    mixed=st.booleans(),
    read=st.sampled_from([1, 24, 1 << 20]),
    data=st.data(),
)
def test_what_is_stored_fills_the_same_network(rows, width, experts, mixed, read, data):
    """``fill`` undoes ``stored``, whatever rows are fused how, read at once or row by row, cast or not."""
    torch.manual_seed(0)
    network = Network(rows, width, experts)
    order = data.draw(st.permutations(range(sum(rows)))) if mixed else None
    how = pieces(order, rows, experts)
    dtype = data.draw(st.sampled_from([None, torch.float64, torch.bfloat16]))
    parameters = dict(network.named_parameters())
    wanted = {name: one.to(dtype) if name in parameters else one for name, one in network.state_dict().items()}
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "READ", read)
        written = write(Path(name), network, how)
        found = empty(rows=rows, width=width, experts=experts)
        fill(found, Path(name), how, dtype=dtype)
        same(found.state_dict(), wanted)
        if dtype is None:
            same(stored(found.state_dict(), how), written)
        del found  # its tensors are the file


def test_rows_are_the_tensor_s(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "READ", 8)
    written = write(tmp_path, Network(), pieces())
    shards = Shards(tmp_path)
    for key in ("the.table", "qkv", "the.graph", "the.bias"):
        tensor = written[key]
        for start, stop in ((0, len(tensor)), (1, len(tensor) - 1), (2, 2)):
            assert torch.equal(shards.rows(key, start, stop), tensor[start:stop])
    assert shards.rows("the.none", 0, 0).shape == (0, 5)


def test_a_file_cut_off_while_it_is_read(tmp_path):
    write(tmp_path, Network(), pieces())
    shards = Shards(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    path.unlink()  # the mapped file stays as it is
    path.write_bytes(whole[: len(whole) // 2])
    end = max(shards.shapes, key=lambda key: shards._begins[key][1])
    with pytest.raises(ValueError, match=r"model.safetensors: was cut off while it was read"):
        shards.rows(end, 0, shards.shapes[end][0])


def test_what_stays_as_it_is_stored_is_the_file_itself(tmp_path):
    """Mapped, on the CPU: the tensors of two readers are the same memory or none of their own, and no row is read."""
    write(tmp_path, Network(), pieces())
    found = empty()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shards, "rows", lambda *_: pytest.fail("read, where it could be mapped"))
        patch.setattr(weights, "_copy", lambda *_: None)  # the stacked experts, which are no single tensor
        fill(found, tmp_path, pieces())
    assert not found.table.is_meta


def test_computed_buffers_go_along(tmp_path):
    write(tmp_path, Network(), pieces())
    found = empty()
    fill(found, tmp_path, pieces(), place=lambda name: "meta")
    assert {name for name, one in (*found.named_parameters(), *found.named_buffers()) if not one.is_meta} == set()
    assert "angles" not in found.state_dict(), "and are stored no more than before"


def test_what_becomes_of_tensors_matrix_by_matrix(tmp_path):
    """Experts apart, experts stacked in the file, and a fused matrix: each is handed over alone."""
    network = Network()
    for how in (pieces(), [*(one for one in pieces() if one.name != "up"), Piece("experts", "up")]):
        write(tmp_path, network, how)
        found, seen = empty(), []

        def made(matrix, seen=seen):
            seen.append(matrix.clone())
            return -matrix

        fill(found, tmp_path, how, become={"up": made, "k": made})
        assert [tuple(one.shape) for one in seen] == [(2, 5), (4, 5), (4, 5), (4, 5)]
        assert torch.equal(found.k, -network.k)
        assert isinstance(found.up, nn.ParameterList)
        assert torch.equal(torch.stack(list(found.up)), -network.up)
        assert not found.up[0].requires_grad


# ------------------------------------------------------------------------------------------------ what is not in order


def misplaced(folder, keys):
    written = write(folder, Network(), pieces(), one=["qkv"])
    where = {key: "one.safetensors" if key == "qkv" else "rest.safetensors" for key in written}
    index(folder, where | keys(where))


def test_shards_are_read_and_what_their_sum_is_said_to_be_does_not_count(tmp_path):
    network = Network()
    written = write(tmp_path, network, pieces(), one=["qkv", "the.table"], two=["the.bias"])
    found = empty()
    fill(found, tmp_path, pieces())
    same(stored(found.state_dict(), pieces()), written)
    where = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    index(tmp_path, where, metadata={"total_size": 3})
    fill(empty(), tmp_path, pieces())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            lambda where: {"qkv": "rest.safetensors", "the.bias": "one.safetensors"},
            r"qkv is said to be in rest.safetensors, and is in one.safetensors \(2 are misplaced",
        ),
        (lambda where: {"else": "one.safetensors"}, "else is said to be in one.safetensors, and is in None"),
        (lambda where: {"qkv": "three.safetensors"}, "three.safetensors: no such file"),
        (lambda where: {"qkv": "../one.safetensors"}, "names the file '../one.safetensors'; only .safetensors files"),
        (lambda where: {"qkv": "/etc/one.safetensors"}, "names the file '/etc/one.safetensors'"),
        (lambda where: {"qkv": "sub/one.safetensors"}, "names the file 'sub/one.safetensors'"),
        (lambda where: {"qkv": "one.bin"}, "names the file 'one.bin'"),
    ],
)
def test_an_index_that_is_wrong(keys, message, tmp_path):
    outside = tmp_path / "one.safetensors"
    (tmp_path / "in").mkdir()
    save_file({"qkv": torch.zeros(1)}, outside)
    misplaced(tmp_path / "in", keys)
    with pytest.raises(ValueError, match=message):
        Shards(tmp_path / "in")


def test_a_tensor_that_the_index_leaves_out(tmp_path):
    misplaced(tmp_path, lambda where: {})
    where = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    del where["the.bias"]
    index(tmp_path, where)
    with pytest.raises(ValueError, match=r"the.bias is said to be in None, and is in rest.safetensors"):
        Shards(tmp_path)


def test_a_tensor_in_two_files(tmp_path):
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "one.safetensors")
    save_file({"b": torch.ones(1)}, tmp_path / "two.safetensors")
    for said in ("one", "two"):
        index(tmp_path, {"a": "one.safetensors", "b": f"{said}.safetensors", "c": "two.safetensors"})
        with pytest.raises(ValueError, match=r"two.safetensors: b is in one.safetensors too"):
            Shards(tmp_path)


def test_an_index_with_a_key_twice(tmp_path):
    write(tmp_path, Network(), pieces(), one=["qkv"])
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(path.read_text().replace('"qkv":', '"qkv": "rest.safetensors", "qkv":'))
    with pytest.raises(ValueError, match="damaged, ValueError qkv is in it twice"):
        Shards(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": ["a"]}', "{"])
def test_an_index_that_is_none(text, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index.json: damaged"):
        Shards(tmp_path)


def raw(header, data=b""):
    text = header.encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        raw("{}")[:9],
        raw('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', b"1234"),
        raw('{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}', b"12345678"),
        raw('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}', b"12345678"),
        raw(
            '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
            ' "a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
            b"12345678",
        ),
        raw(
            '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
            ' "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
            b"1234",
        ),
    ],
)
def test_a_damaged_file(content, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors: damaged"):
        Shards(tmp_path)


def test_precisions_that_cannot_meet(tmp_path):
    """Weights of two precisions need ``dtype``; buffers keep their own with and without it."""
    network = Network()
    network.table.data = network.table.data.to(torch.bfloat16)
    write(tmp_path, network, pieces())
    with pytest.raises(ValueError, match=r"the.table is torch.bfloat16, qkv torch.float32; convert .*dtype="):
        fill(empty(), tmp_path, pieces())
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found = empty()
        assert fits(found, Shards(tmp_path), pieces(), dtype) == {
            name: dtype if name not in ("graph", "bias") else one.dtype for name, one in network.state_dict().items()
        }
        fill(found, tmp_path, pieces(), dtype=dtype)
        assert {one.dtype for one in found.parameters()} == {dtype}
        assert (found.graph.dtype, found.bias.dtype) == (torch.int64, torch.float64)
        assert torch.equal(found.table, network.table.to(dtype))


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e4m3fn])
def test_weights_that_are_no_numbers_of_16_bits(dtype, tmp_path):
    network = Network()
    network.table = nn.Parameter(network.table.data.to(dtype), requires_grad=False)
    write(tmp_path, network, pieces())
    for asked in (None, torch.float32):
        with pytest.raises(ValueError, match=rf"the.table is {dtype}; convert"):
            fill(empty(), tmp_path, pieces(), dtype=asked)


def test_nothing_is_read_where_anything_is_wrong(tmp_path):
    write(tmp_path, Network(), [one for one in pieces() if one.name != "bias"])
    found = empty()
    with pytest.raises(ValueError, match=r"missing \['the.bias'\]"):
        fill(found, tmp_path, pieces())
    assert all(one.is_meta for one in found.parameters())


# ------------------------------------------------------------------------------------------------------------- writing


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("most", [100, 250, 1000])
def test_shards_are_no_larger_than_asked(most, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "MAX_SHARD", most)
    tensors = {f"t{i}": torch.randn(5, 5) for i in range(7)}  # 100 bytes each
    write_weights(tmp_path, tensors)
    count = -(-7 // (most // 100)) if most < 700 else 1
    assert len([name for name in names(tmp_path) if name.endswith(".safetensors")]) == count
    found = {}
    for path in tmp_path.glob("*.safetensors"):
        part = load_file(path)
        assert sum(one.numel() * one.itemsize for one in part.values()) <= most
        found |= part
    same(found, tensors)
    assert Shards(tmp_path).shapes == dict.fromkeys(tensors, (5, 5))


def test_mapped_tensors_are_divided_as_others_are(tmp_path, monkeypatch):
    """All are views of one file; by their storage they are as many."""
    tensors = {f"t{i}": torch.randn(5, 5) for i in range(7)}
    write_weights(tmp_path, tensors)
    shards = Shards(tmp_path)
    monkeypatch.setattr(weights, "MAX_SHARD", 300)
    write_weights(tmp_path, {name: shards.get(name) for name in tensors})  # over the very file they are read from
    assert len(names(tmp_path)) == 3 + 1
    again = Shards(tmp_path)
    same({name: again.get(name) for name in tensors}, tensors)


def test_what_an_earlier_save_left_goes(tmp_path, monkeypatch):
    (tmp_path / "adapter.safetensors").write_bytes(b"of someone else")
    tensors = {f"t{i}": torch.randn(5, 5) for i in range(7)}
    sizes = (100, 300, 1000, 300)
    for most in sizes:
        monkeypatch.setattr(weights, "MAX_SHARD", most)
        write_weights(tmp_path, tensors)
        index_kept = "model.safetensors.index.json" in names(tmp_path)
        assert index_kept == (most < 700)
        expected = {100: 7, 300: 3, 1000: 1}[most]
        assert len(list(tmp_path.glob("model*.safetensors"))) == expected
        shards = Shards(tmp_path)
        same({name: shards.get(name) for name in tensors}, tensors)
    assert "adapter.safetensors" in names(tmp_path)


def test_an_interrupted_save_leaves_no_model(tmp_path, monkeypatch):
    tensors = {f"t{i}": torch.randn(5, 5) for i in range(7)}
    monkeypatch.setattr(weights, "MAX_SHARD", 300)
    folders.write_model(tmp_path, tensors, "{}")
    assert "config.json" in names(tmp_path)
    written = []

    def interrupted(part, path, **_):
        if written:
            raise KeyboardInterrupt
        save_file(part, path)
        written.append(path)

    monkeypatch.setattr(weights, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        folders.write_model(tmp_path, {name: one + 1 for name, one in tensors.items()}, "{}")
    assert "config.json" not in names(tmp_path)
    assert not [name for name in names(tmp_path) if name.endswith(".tmp")]
    with pytest.raises(ValueError, match=r"no config.json"):
        folders.read_config(tmp_path)
