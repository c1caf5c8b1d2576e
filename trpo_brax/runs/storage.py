"""Arrays as Orbax stores them, read from a folder that anybody may have made.

Nothing is unpickled; names, shapes and dtypes are compared before arrays are read, and what they unpack to is bounded.
"""

from __future__ import annotations

import logging
import math
import mmap
import os
import re
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from trpo_brax.errors import CheckpointError
from trpo_brax.runs.files import MOST_JSON_BYTES, one_line, parse_json, read_json

# Orbax reports on its own workings through absl; what went wrong reaches us as an exception.
logging.getLogger("absl").setLevel(logging.CRITICAL)


def _is_ours_to_tell(record: logging.LogRecord) -> bool:
    """Return False for a traceback of a write that Orbax did not wait for, once another of the save had failed."""
    if "never retrieved" not in record.getMessage():
        return True
    trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
    return "orbax" not in record.getMessage() + trace


logging.getLogger("asyncio").addFilter(_is_ours_to_tell)


ACTING = ("policy", "statistics")
"""The fields of TrainState in the item `policy`."""
_MOST_INDEX_BYTES = 256 << 20
"""Of what TensorStore keeps of where the arrays are, unpacked."""
_MOST_DESCRIPTION_BYTES = 1 << 16
"""Of how one array is stored."""
_MOST_BYTES_OF_ONE = 1 << 14
"""Of what Orbax writes about one array, whose name stands in it several times and may be escaped."""
_KEY_OF_DICTIONARY = 2
_KINDS_OF_ARRAY = ("jax.Array", "np.ndarray", "scalar")
_ARRAY_FIELDS = {
    *("chunks", "compressor", "dimension_separator", "dtype", "fill_value", "filters", "order", "shape", "zarr_format"),
}
_LARGEST_BLOCK = 1 << 17
# A node of TensorStore's index: magic number, length, version 0, compression 1, and a Zstandard frame. Numbers may be
# written longer than need be.
_PACKED_NODE = re.compile(
    rb"\x0c\xdb(?:\x12\x34|\x20\xde|\x3a\x2a)[\x00-\xff]{8}\x80{0,9}\x00(?:\x01|\x81\x80{0,8}\x00)\x28\xb5\x2f\xfd"
)


def read_arrays(folder: Path, wanted: Mapping[str, jax.ShapeDtypeStruct], what: str) -> dict[str, jax.Array]:
    """Return the arrays that Orbax stored in a folder, once names, shapes and dtypes are found to be those wanted.

    Args:
        folder: an item of a checkpoint, or anything `save_arrays` wrote.
        wanted: shape, dtype and sharding of each array.
        what: is read, for the sentence.

    Raises:
        CheckpointError: they are not, or the folder cannot be read.
    """
    folder = folder.absolute()
    stored = {name: _as_stored(leaf) for name, leaf in wanted.items() if leaf.size}
    most_bytes = MOST_JSON_BYTES + _MOST_BYTES_OF_ONE * len(stored)
    try:
        # Orbax would find this out in threads of its own, and say so in tracebacks.
        for file in (folder / "array_metadatas").iterdir():
            read_json(file, most_bytes)
        _compare_names(_stored_names(folder, most_bytes), stored, what)
        _refuse_unbounded_index(folder)
        _compare(_stored_arrays(folder, stored), stored, what)
        with ocp.StandardCheckpointer() as reader:
            found: dict[str, jax.Array] = reader.restore(folder, stored)
        # Once more, of what has been read: Orbax would cast a wrong dtype silently.
        _compare(found, stored, what)
    except CheckpointError:
        raise
    except Exception as error:
        # A folder that anybody may have made is handed to a library here: whatever it raises, the folder is refused.
        raise CheckpointError(f"{what} cannot be read: {first_line(error).rstrip('.')}.") from error
    return {name: _from_stored(found.get(name), leaf) for name, leaf in wanted.items()}


def stored_leaves(tree: Any) -> dict[str, jax.Array]:
    """Return a tree's arrays under their dotted paths, as Orbax can store them: its format knows NumPy's types only.

    Keys are stored as their words, other foreign types as their bits, and arrays without elements not at all.
    """
    return {name: _stored(leaf) for name, leaf in named_leaves(tree).items() if np.size(leaf)}


def items_of(named: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return TrainState's leaves by the item of a checkpoint that holds them."""
    acting = {name: leaf for name, leaf in named.items() if name.split(".")[0] in ACTING}
    return {"policy": acting, "training": {name: leaf for name, leaf in named.items() if name not in acting}}


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return a tree's leaves under their dotted paths, in the tree's order."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def placed_leaves(like: Any, shardings: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shape, dtype and sharding of a tree's leaves under their dotted paths."""
    return named_leaves(
        jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like, shardings
        )
    )


def first_line(error: BaseException) -> str:
    """Return what an exception says, in one line of bounded length."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def _stored(array: jax.Array) -> jax.Array:
    dtype = jnp.result_type(array)
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return jax.random.key_data(array)
    if dtype.isbuiltin == 1:
        return array
    return jax.lax.bitcast_convert_type(array, {1: jnp.uint8, 2: jnp.uint16}[dtype.itemsize])


def _from_stored(array: jax.Array | None, wanted: jax.ShapeDtypeStruct) -> jax.Array:
    """Return an array as it was before `_stored`; None stands for one without elements."""
    if array is None:
        return jax.device_put(jnp.empty(wanted.shape, wanted.dtype), wanted.sharding)
    if jnp.issubdtype(wanted.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(array, impl=jax.random.key_impl(jnp.empty((0,), wanted.dtype)))
    if wanted.dtype.isbuiltin == 1:
        return array
    return jax.lax.bitcast_convert_type(array, wanted.dtype)


def _as_stored(wanted: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    stored = jax.eval_shape(_stored, wanted)
    return jax.ShapeDtypeStruct(stored.shape, stored.dtype, sharding=wanted.sharding)


def _stored_names(folder: Path, most_bytes: int) -> list[str]:
    """Return the names of stored arrays; of a list unlike ours Orbax would read other files, or make up zeros."""
    told = read_json(folder / "_METADATA", most_bytes)
    sound = told["use_ocdbt"] is True and not told["use_zarr3"] and told["store_array_data_equal_to_fill_value"] is True
    # Where this file is, Orbax takes arrays from it, as it once wrote them.
    sound = sound and not os.path.lexists(folder / "checkpoint")
    names = []
    for entry in told["tree_metadata"].values():
        (key,), value = entry["key_metadata"], entry["value_metadata"]
        sound = sound and value["value_type"] in _KINDS_OF_ARRAY and value["skip_deserialize"] is False
        sound = sound and key["key_type"] == _KEY_OF_DICTIONARY and isinstance(key["key"], str)
        names.append(key["key"])
    if not sound:
        raise ValueError("its _METADATA is of another kind of checkpoint")
    return names


def _stored_arrays(folder: Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
    """Return shape and dtype of the arrays that are stored under the wanted names.

    TensorStore parses the description of an array by recursion, and unpacks a chunk to whatever size that says a chunk
    has: one nested deeply would crash the process, and one of huge chunks take all of its memory.
    """
    base = {"driver": "file", "path": f"{folder}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    reads = {name: store.read(f"{name}/.zarray") for name in wanted}
    found = {}
    for name, read in reads.items():
        text = read.result().value
        if not 0 < len(text) <= _MOST_DESCRIPTION_BYTES:
            raise ValueError(f"{name} is missing, or its description absurdly long")
        told = parse_json(text.decode("utf-8"), f"the description of {name}")
        shape, chunks, dtype = told["shape"], told["chunks"], told["dtype"]
        sound = told.keys() == _ARRAY_FIELDS and isinstance(dtype, str) and re.fullmatch(r"[<>|][a-z]\d{1,2}", dtype)
        sound = sound and all(isinstance(size, int) for size in [*shape, *chunks]) and len(shape) == len(chunks)
        sound = sound and all(0 < chunk <= max(size, 1) for size, chunk in zip(shape, chunks, strict=True))
        if not sound or told["fill_value"] is not None or told["filters"] is not None:
            raise ValueError(f"{name} is not stored as our arrays are")
        found[name] = jax.ShapeDtypeStruct(shape, np.dtype(dtype))
    return found


def _refuse_unbounded_index(folder: Path) -> None:
    """Refuse a folder in which TensorStore's index of arrays unpacks to more than it can rightly hold."""
    total = 0
    for path in folder.rglob("*"):
        if not path.is_file() or not path.stat().st_size:
            continue
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            at = _PACKED_NODE.search(content)
            while at is not None:
                total += _most_unpacked(content, at.end() - 4, _MOST_INDEX_BYTES - total)
                if total > _MOST_INDEX_BYTES:
                    raise ValueError("its index of arrays unpacks to more than it can rightly hold")
                at = _PACKED_NODE.search(content, at.start() + 1)


def _most_unpacked(data: mmap.mmap, at: int, enough: int) -> int:
    """Return the most bytes that the Zstandard frame at `at` unpacks to (RFC 8878, 3.1.1), or more than `enough`."""
    flags = data[at + 4]
    whole, size_code = bool(flags & 0x20), flags >> 6
    size_bytes = 1 << size_code if size_code or whole else 0
    at += 5 + (0 if whole else 1) + (0, 1, 2, 4)[flags & 3]
    # A frame without a window of its own has that of its size.
    window = int.from_bytes(data[at : at + size_bytes], "little") + (256 if size_code == 1 else 0)
    block = min(window, _LARGEST_BLOCK) if whole else _LARGEST_BLOCK
    at += size_bytes
    total, last = 0, False
    while not last and total <= enough and at + 3 <= len(data):
        header = int.from_bytes(data[at : at + 3], "little")
        last, repeated = bool(header & 1), header >> 1 & 3 == 1
        total += block
        at += 3 + (1 if repeated else header >> 3)
    return total


def _compare_names(found: Iterable[str], wanted: Iterable[str], what: str) -> None:
    different = sorted(set(found) ^ set(wanted))
    if different:
        raise CheckpointError(f"{what} does not belong to this configuration: {one_line(different[0], 80)} differs.")


def _compare(found: Any, wanted: Mapping[str, jax.ShapeDtypeStruct], what: str) -> None:
    _compare_names(found, wanted, what)
    for name, leaf in wanted.items():
        shape, dtype = tuple(found[name].shape), found[name].dtype
        if shape != leaf.shape or dtype != leaf.dtype:
            raise CheckpointError(
                f"{what} does not belong to this configuration: {name} is "
                f"{dtype}{list(shape)}, not {leaf.dtype}{list(leaf.shape)}."
            )


def bytes_of(wanted: Mapping[str, jax.ShapeDtypeStruct]) -> int:
    """Return how many bytes arrays of these shapes and dtypes take in memory."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in wanted.values())
