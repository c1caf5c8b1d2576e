"""Reading checkpoints of the whole TrainState, which may be damaged, foreign, or made to do harm.

A checkpoint has three items: `policy` (what acts: policy parameters and observation statistics, loadable with no
environment at hand), `training` (everything else) and `config`, and a manifest of all their files, written before the
checkpoint gets its name: a numbered folder without one was never whole. Arrays are stored by Orbax under their path in
TrainState. `training/saving.py` writes them; no third module knows Orbax.

Nothing is unpickled, and nothing read that the configuration does not lead one to expect: names, shapes and dtypes are
compared before arrays are read, links are refused, and files, arrays and what they unpack to have a largest size.
"""

from __future__ import annotations

import logging
import math
import mmap
import os
import re
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from trpo_brax.config import Config, from_dict, shaping_differences
from trpo_brax.errors import CheckpointError, ConfigError, RunFolderError
from trpo_brax.policy import ObservationStatistics, PolicySpecification
from trpo_brax.training.files import one_line, parse_json, read_json
from trpo_brax.training.manifest import MANIFEST, manifest_hash, read_manifest, verify
from trpo_brax.training.state import TrainState

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
TRAINING_RETURNS, EVALUATION_RETURNS = "training_returns", "evaluation_returns"
"""Of a manifest: each seed's mean return, by what a checkpoint is ranked."""
MOST_BYTES = 64 << 30
"""Of a checkpoint's files."""
MOST_POLICY_BYTES = 4 << 30
"""Of a policy's parameters."""
_SLACK_BYTES = 16 << 20
_MOST_INDEX_BYTES = 256 << 20
"""Of what TensorStore keeps of where the arrays are, unpacked."""
_MOST_DESCRIPTION_BYTES = 1 << 16
"""Of how one array is stored."""
_MOST_NAMED = 20


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is not what was written: a reason to go on from an older one, not to stop."""


class Checkpoints:
    """The checkpoints in a run folder.

    Args:
        directory: `checkpoints/` of the run.
        config: of the run.

    Raises:
        CheckpointError: there is no such folder.
    """

    def __init__(self, directory: Path, config: Config) -> None:
        self._directory = directory.absolute()
        self._config = config
        if self._directory.is_symlink():
            raise CheckpointError(f"{directory} is a link: it is not read.")
        if not self._directory.is_dir():
            raise CheckpointError(f"there is no folder {directory}, so no checkpoint to read.")

    def present(self) -> list[int]:
        """Return the iterations whose folders there are, complete or not, ascending."""
        return sorted(
            int(name) for name in os.listdir(self._directory) if name.isascii() and name == str(_number(name))
        )

    def iterations(self) -> list[int]:
        """Return the iterations of complete checkpoints, ascending."""
        return [step for step in self.present() if os.path.lexists(self._folder(step) / MANIFEST)]

    def resolve(self, which: str | int, seed: int | None = None) -> int:
        """Return the iteration meant by `latest`, `best` (of a seed, by default the first) or a number.

        Raises:
            CheckpointError: there is no such checkpoint; the sentence lists those there are.
        """
        known = self.iterations()
        if not known:
            raise CheckpointError(f"{self._directory} holds no complete checkpoint.")
        if which == "latest":
            if (newest := self.present()[-1]) != known[-1]:
                # A checkpoint gets its name once it is whole: another one would not be the latest.
                raise DamagedCheckpointError(f"checkpoint {self._folder(newest)} is damaged: it has no {MANIFEST}.")
            return known[-1]
        if which == "best":
            seed = self._config.seed if seed is None else seed
            # Before any episode has ended there is nothing to rank by; the latest is as good as any.
            return max((self.rank(step, seed) or (False, -math.inf), step) for step in known)[1]
        if not str(which).isdecimal():
            raise CheckpointError(f"checkpoint must be best, latest or an iteration, not {one_line(repr(which))}.")
        iteration = _number(str(which))
        if iteration not in known:
            there = f"{'..., ' if len(known) > _MOST_NAMED else ''}{', '.join(map(str, known[-_MOST_NAMED:]))}"
            raise CheckpointError(f"there is no checkpoint {one_line(which)} in {self._directory}; there are {there}.")
        return iteration

    def verify(self, iteration: int, most_bytes: int = MOST_BYTES, most_of: Mapping[str, int] | None = None) -> None:
        """Compare a checkpoint's files with its manifest.

        Args:
            iteration: of the checkpoint.
            most_bytes: all files together may hold.
            most_of: item -> most bytes that the files of that item together may hold.

        Raises:
            DamagedCheckpointError: they are not the ones written.
        """
        folder = self._folder(iteration)
        try:
            if folder.is_symlink() or not folder.is_dir():
                raise CheckpointError("it is no folder")
            manifest = verify(folder, most_bytes, most_of)
            if manifest.get("iteration") != iteration:
                raise CheckpointError("it was written under another iteration")
        except FileNotFoundError as error:
            raise DamagedCheckpointError(f"checkpoint {folder} is damaged: {error.strerror}.") from error
        except OSError as error:
            # A disk or a permission that fails says nothing of the checkpoint.
            raise CheckpointError(f"checkpoint {folder} cannot be read: {error.strerror}.") from error
        except CheckpointError as error:
            raise DamagedCheckpointError(f"checkpoint {folder} is damaged: {error}.") from error

    def restore(self, iteration: int, like: TrainState, shardings: TrainState) -> TrainState:
        """Return the whole state of a checkpoint.

        Args:
            iteration: of a complete checkpoint.
            like: shapes and dtypes that the configuration implies.
            shardings: where each leaf goes.

        Raises:
            DamagedCheckpointError: it is not what was written.
            CheckpointError: it does not fit, or cannot be read.
        """
        wanted = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like, shardings
        )
        named = named_leaves(wanted)
        arrays = self._read(iteration, items_of(named))
        state: TrainState = jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in named])
        if np.any(np.asarray(state.iteration) != iteration):
            raise CheckpointError(f"checkpoint {self._folder(iteration)} holds the state of another iteration.")
        return state

    def restore_policy(
        self, iteration: int, specification: PolicySpecification, seed: int | None = None
    ) -> tuple[Any, ObservationStatistics]:
        """Return policy parameters and observation statistics of a checkpoint, on the default device.

        Args:
            iteration: of a complete checkpoint.
            specification: of the policy.
            seed: which of the run's; by default the first.

        Raises:
            DamagedCheckpointError: it is not what was written.
            CheckpointError: it does not fit, or cannot be read.
        """
        networks = specification.networks()
        tree = {
            "policy": jax.eval_shape(networks.initial_policy, jax.ShapeDtypeStruct((2,), np.uint32)),
            "statistics": jax.eval_shape(lambda: ObservationStatistics.empty(specification.observation_size)),
        }
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        seeds = self._config.seeds
        axis = (len(seeds),) if len(seeds) > 1 else ()
        named = {
            name: jax.ShapeDtypeStruct((*axis, *leaf.shape), leaf.dtype, sharding=sharding)
            for name, leaf in named_leaves(tree).items()
        }
        if _bytes_of(named) > MOST_POLICY_BYTES:
            raise CheckpointError(
                f"the configuration of {self._directory.parent} asks for a policy of {_bytes_of(named):,} bytes, "
                f"and at most {MOST_POLICY_BYTES:,} are read."
            )
        arrays = self._read(iteration, {"policy": named})
        restored = jax.tree.unflatten(jax.tree.structure(tree), [arrays[name] for name in named])
        if axis:
            position = 0 if seed is None else seeds.index(seed)
            restored = jax.tree.map(lambda leaf: leaf[position], restored)
        return restored["policy"], restored["statistics"]

    def newest_intact(self, quarantine: Callable[[int, str], None]) -> int | None:
        """Return the newest iteration whose files are those written; every newer one is handed to `quarantine`.

        Args:
            quarantine: (iteration, why) -> takes the checkpoint out of the way.
        """
        for iteration in reversed(self.present()):
            try:
                self.verify(iteration)
            except DamagedCheckpointError as error:
                quarantine(iteration, str(error))
            else:
                return iteration
        return None

    def quarantine(self, iteration: int, folder: Path) -> Path:
        """Move a checkpoint, whatever it is, into `folder`, and return where it lies now.

        Raises:
            CheckpointError: it cannot be moved.
        """
        try:
            folder.mkdir(exist_ok=True)
            taken = 1
            while os.path.lexists(target := folder / (f"{iteration}" if taken == 1 else f"{iteration}.{taken}")):
                taken += 1
            self._folder(iteration).rename(target)
        except OSError as error:
            raise CheckpointError(
                f"checkpoint {self._folder(iteration)} is damaged and cannot be moved away: {error.strerror}."
            ) from error
        return target

    def _folder(self, iteration: int) -> Path:
        return self._directory / str(iteration)

    def hash(self, iteration: int) -> str:
        """Return the SHA-256 of a checkpoint's manifest.

        Raises:
            CheckpointError: it cannot be read.
        """
        return manifest_hash(self._folder(iteration))

    def rank(self, iteration: int, seed: int) -> tuple[bool, float] | None:
        """Return what a seed's checkpoint is ranked by, None where it does not compete for best.

        That is whether it has a mean return of the kind that the configuration ranks by, of evaluations or of training,
        and that return, or the other.

        Raises:
            DamagedCheckpointError: its manifest cannot be read.
        """
        try:
            manifest = read_manifest(self._folder(iteration))
        except CheckpointError as error:
            raise DamagedCheckpointError(f"checkpoint {self._folder(iteration)} is damaged: {error}.") from error
        kinds = (TRAINING_RETURNS, EVALUATION_RETURNS)
        wanted = kinds[self._config.record.eval_every > 0]
        for name in sorted(kinds, key=lambda kind: kind != wanted):
            returns = manifest.get(name)
            value = returns.get(str(seed)) if isinstance(returns, dict) else None
            if isinstance(value, (int, float)):
                return name == wanted, float(value)
        return None

    def _read(self, iteration: int, items: Mapping[str, Mapping[str, jax.ShapeDtypeStruct]]) -> dict[str, jax.Array]:
        folder, whole = self._folder(iteration), "training" in items
        most_of = {item: 2 * _bytes_of(wanted) + _SLACK_BYTES for item, wanted in items.items()}
        self.verify(iteration, sum(most_of.values()) if whole else MOST_BYTES, most_of)
        arrays: dict[str, jax.Array] = {}
        for item, wanted in items.items():
            arrays |= read_arrays(folder / item, wanted, f"checkpoint {folder}")
        self._check_config(folder, whole=whole)
        return arrays

    def _check_config(self, folder: Path, *, whole: bool) -> None:
        """Compare the configuration that the checkpoint was written under with the run's.

        Equal shapes do not make the same run: another activation, for instance, is another policy.
        """
        try:
            written = from_dict(read_json(folder / "config" / "metadata"), f"the configuration of checkpoint {folder}")
        except (ConfigError, RunFolderError) as error:
            raise CheckpointError(str(error)) from error
        different = shaping_differences(written, self._config)
        if not whole:
            # Of what shapes learning, a policy at work depends on its network alone.
            different = [name for name in different if hasattr(written.network, name)]
        if different:
            raise CheckpointError(f"checkpoint {folder} does not belong to this run: its {different[0]} differs.")


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
    try:
        # Orbax would find this out in threads of its own, and say so in tracebacks.
        for file in (folder / "array_metadatas").iterdir():
            read_json(file)
        _compare_names(_stored_names(folder), wanted, what)
        _refuse_unbounded_index(folder)
        _compare(_stored_arrays(folder, wanted), wanted, what)
        with ocp.StandardCheckpointer() as reader:
            found: dict[str, jax.Array] = reader.restore(folder, dict(wanted))
        # Once more, of what has been read: Orbax would cast a wrong dtype silently.
        _compare(found, wanted, what)
    except CheckpointError:
        raise
    except Exception as error:
        # A folder that anybody may have made is handed to a library here: whatever it raises, the folder is refused.
        raise CheckpointError(f"{what} cannot be read: {first_line(error).rstrip('.')}.") from error
    return found


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


def first_line(error: BaseException) -> str:
    """Return what an exception says, in one line of bounded length."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def _stored_names(folder: Path) -> list[str]:
    """Return the names of the arrays that Orbax stored in a folder.

    Raises:
        ValueError: its list of them is not as our checkpoints have it; Orbax would read other files, or make up zeros.
    """
    told = read_json(folder / "_METADATA")
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

    Raises:
        ValueError: an array is missing, or its description is none of ours.
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
    """Refuse a folder in which TensorStore's index of arrays unpacks to more than it can rightly hold.

    Raises:
        ValueError: it might.
    """
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
    """Return the most bytes that a Zstandard frame unpacks to (RFC 8878, 3.1.1), or more than `enough`.

    Args:
        data: holds it.
        at: where it begins.
        enough: not counted further.
    """
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


def _bytes_of(wanted: Mapping[str, jax.ShapeDtypeStruct]) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in wanted.values())


def _number(name: str) -> int | None:
    # Iterations are counted in int32.
    return int(name) if name.isdecimal() and len(name) <= 10 and int(name) < 2**31 else None


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
