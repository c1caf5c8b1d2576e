"""Checkpoints of the whole TrainState, by Orbax's CheckpointManager; no other module knows Orbax.

A checkpoint has three items: `policy` (what acts: policy parameters and observation statistics, loadable with no
environment at hand), `training` (everything else) and `config`. Arrays are stored under their path in TrainState.
"""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from trpo_brax.config import Config, to_dict
from trpo_brax.errors import CheckpointError
from trpo_brax.policy import ObservationStatistics, PolicySpecification
from trpo_brax.training.state import TrainState

# Orbax reports on its own workings through absl; what went wrong reaches us as an exception.
logging.getLogger("absl").setLevel(logging.CRITICAL)

_ACTING = ("policy", "statistics")
_RETURN = "training_return"


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        directory: `checkpoints/` of the run.
        seeds: of the run; several are a leading axis of every array.
        keep: latest checkpoints kept besides each seed's best; None: only read.
    """

    def __init__(self, directory: Path, *, seeds: Sequence[int] = (0,), keep: int | None = None) -> None:
        self._directory = directory.absolute()
        self._seeds = seeds
        if keep is None and not self._directory.is_dir():
            raise CheckpointError(f"there is no folder {directory}, so no checkpoint to read.")
        best = [
            checkpoint_managers.BestN(
                get_metric_fn=functools.partial(_training_return, seed), n=1, keep_checkpoints_without_metrics=False
            )
            for seed in seeds
        ]
        policies: list[Any] = [checkpoint_managers.LatestN(keep), *best]
        options = ocp.CheckpointManagerOptions(
            create=keep is not None,
            read_only=keep is None,
            # Without it Orbax keeps no metrics; which is best is a question of each seed, see `resolve`.
            best_fn=functools.partial(_training_return, seeds[0]),
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies) if keep is not None else None,
        )
        try:
            self._manager = ocp.CheckpointManager(self._directory, options=options)
        except (ValueError, KeyError, OSError) as error:
            raise CheckpointError(
                f"checkpoints {self._directory} cannot be read: {_first_line(error).rstrip('.')}."
            ) from error

    def save(self, state: TrainState, config: Config, training_returns: Mapping[int, float]) -> None:
        """Begin to save `state`, which must not be donated meanwhile; the writing goes on in the background.

        Args:
            state: of the run, on any devices.
            config: of the run.
            training_returns: what the best is chosen by, for each seed that has one; none: not a candidate.
        """
        arrays = _named(state)
        acting = {name: leaf for name, leaf in arrays.items() if name.split(".")[0] in _ACTING}
        training = {name: leaf for name, leaf in arrays.items() if name not in acting}
        self._manager.save(
            int(np.max(jax.device_get(state.iteration))),
            args=ocp.args.Composite(
                policy=ocp.args.StandardSave(acting),
                training=ocp.args.StandardSave(training),
                config=ocp.args.JsonSave(to_dict(config)),
            ),
            metrics={_RETURN: {str(seed): value for seed, value in training_returns.items()}}
            if training_returns
            else None,
        )

    def iterations(self) -> list[int]:
        """Return the iterations of complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def resolve(self, which: str | int, seed: int | None = None) -> int:
        """Return the iteration meant by `latest`, `best` (of a seed, by default the first) or a number.

        Raises:
            CheckpointError: there is no such checkpoint; the sentence lists those there are.
        """
        known = self.iterations()
        if not known:
            raise CheckpointError(f"{self._directory} holds no complete checkpoint.")
        if which == "latest":
            return known[-1]
        if which == "best":
            seed = self._seeds[0] if seed is None else seed
            ranked = [(_training_return(seed, self._manager.metrics(step) or {}), step) for step in known]
            # Before any episode has ended there is nothing to rank by; the latest is as good as any.
            return max(ranked)[1]
        if not str(which).isdecimal():
            raise CheckpointError(f"checkpoint must be best, latest or an iteration, not {which!r}.")
        if int(which) not in known:
            there = ", ".join(map(str, known))
            raise CheckpointError(f"there is no checkpoint {which} in {self._directory}; there are {there}.")
        return int(which)

    def restore(self, iteration: int, like: TrainState, shardings: TrainState) -> TrainState:
        """Return the whole state of a checkpoint.

        Args:
            iteration: of a complete checkpoint.
            like: shapes and dtypes that the configuration implies.
            shardings: where each leaf goes.

        Raises:
            CheckpointError: the checkpoint does not fit, or cannot be read.
        """
        wanted = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like, shardings
        )
        named = _named(wanted)
        acting = {name: leaf for name, leaf in named.items() if name.split(".")[0] in _ACTING}
        training = {name: leaf for name, leaf in named.items() if name not in acting}
        arrays = self._read(iteration, {"policy": acting, "training": training})
        leaves = [arrays[name] for name in named]
        state: TrainState = jax.tree.unflatten(jax.tree.structure(like), leaves)
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
            CheckpointError: the checkpoint does not fit, or cannot be read.
        """
        networks = specification.networks()
        tree = {
            "policy": jax.eval_shape(networks.initial_policy, jax.ShapeDtypeStruct((2,), np.uint32)),
            "statistics": jax.eval_shape(lambda: ObservationStatistics.empty(specification.observation_size)),
        }
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        axis = (len(self._seeds),) if len(self._seeds) > 1 else ()
        named = {
            name: jax.ShapeDtypeStruct((*axis, *leaf.shape), leaf.dtype, sharding=sharding)
            for name, leaf in _named(tree).items()
        }
        arrays = self._read(iteration, {"policy": named})
        restored = jax.tree.unflatten(jax.tree.structure(tree), [arrays[name] for name in named])
        if axis:
            position = 0 if seed is None else self._seeds.index(seed)
            restored = jax.tree.map(lambda leaf: leaf[position], restored)
        return restored["policy"], restored["statistics"]

    def wait(self) -> None:
        """Wait until everything saved is on disk; raise what went wrong in the background."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, and release the threads."""
        self._manager.close()

    def _read(self, iteration: int, items: Mapping[str, Mapping[str, jax.ShapeDtypeStruct]]) -> dict[str, jax.Array]:
        arrays: dict[str, jax.Array] = {}
        folder = self._directory / str(iteration)
        for item, wanted in items.items():
            self._check(folder, item, wanted)
            try:
                found = self._manager.restore(
                    iteration, args=ocp.args.Composite(**{item: ocp.args.StandardRestore(dict(wanted))})
                )
            except (ValueError, KeyError, OSError) as error:
                raise CheckpointError(
                    f"checkpoint {folder} cannot be read: {_first_line(error).rstrip('.')}."
                ) from error
            arrays |= found[item]
        return arrays

    def _check(self, folder: Path, item: str, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> None:
        """Compare names, shapes and dtypes before reading: Orbax would cast a wrong dtype silently."""
        try:
            # Orbax would find this out in a thread of its own, and say so in tracebacks.
            for file in (folder / item / "array_metadatas").iterdir():
                json.loads(file.read_text(encoding="utf-8"))
            with ocp.StandardCheckpointer() as reader:
                stored = reader.metadata(folder / item).item_metadata.tree
        except AttributeError as error:
            raise CheckpointError(f"checkpoint {folder} is damaged: its {item} is not described.") from error
        except (ValueError, KeyError, OSError) as error:
            raise CheckpointError(f"checkpoint {folder} cannot be read: {_first_line(error).rstrip('.')}.") from error
        different = sorted(set(stored) ^ set(wanted))
        if different:
            raise CheckpointError(f"checkpoint {folder} does not belong to this configuration: {different[0]} differs.")
        for name, leaf in wanted.items():
            if tuple(stored[name].shape) != leaf.shape or stored[name].dtype != leaf.dtype:
                raise CheckpointError(
                    f"checkpoint {folder} does not belong to this configuration: {name} is "
                    f"{stored[name].dtype}{list(stored[name].shape)}, not {leaf.dtype}{list(leaf.shape)}."
                )


def _named(tree: Any) -> dict[str, Any]:
    """Return a tree's leaves under their dotted paths, in the tree's order."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _training_return(seed: int, metrics: Mapping[str, Mapping[str, float]]) -> float:
    """Return what a seed's checkpoint is ranked by; one without a return comes last."""
    return metrics.get(_RETURN, {}).get(str(seed), -math.inf)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
