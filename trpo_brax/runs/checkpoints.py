"""Reading checkpoints of the whole TrainState, which may be damaged, foreign, or made to do harm.

A checkpoint has three items: `policy` (what acts: policy parameters and observation statistics, loadable with no
environment at hand), `training` (everything else) and `config`, and a manifest of all their files, written before the
checkpoint gets its name: a numbered folder without one was never whole. Arrays are stored by Orbax under their path in
TrainState. `saving.py` writes them and `storage.py` reads arrays; no other module knows Orbax.

Nothing is unpickled, and nothing read that the configuration does not lead one to expect: names, shapes and dtypes are
compared before arrays are read, links are refused, and files, arrays and what they unpack to have a largest size.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from trpo_brax.config import Config, from_dict, shaping_differences, walk
from trpo_brax.errors import CheckpointError, ConfigError, RunFolderError
from trpo_brax.learner.state import TrainState
from trpo_brax.policy import ObservationStatistics, PolicySpecification
from trpo_brax.runs.files import one_line, read_json
from trpo_brax.runs.manifest import MANIFEST, manifest_hash, read_manifest, verify
from trpo_brax.runs.storage import bytes_of, items_of, named_leaves, placed_leaves, read_arrays

TRAINING_RETURNS, EVALUATION_RETURNS = "training_returns", "evaluation_returns"
"""Of a manifest: each seed's mean return, by what a checkpoint is ranked."""
MOST_BYTES = 64 << 30
"""Of a checkpoint's files."""
MOST_POLICY_BYTES = 4 << 30
"""Of a policy's parameters."""
_SLACK_BYTES = 16 << 20
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
            ConfigError: the run has no such seed.
            CheckpointError: there is no such checkpoint; the sentence lists those there are.
        """
        seed = self._config.check_seed(seed)
        known = self.iterations()
        if not known:
            raise CheckpointError(f"{self._directory} holds no complete checkpoint.")
        if which == "latest":
            if (newest := self.present()[-1]) != known[-1]:
                # A checkpoint gets its name once it is whole: another one would not be the latest.
                raise DamagedCheckpointError(f"checkpoint {self._folder(newest)} is damaged: it has no {MANIFEST}.")
            return known[-1]
        if which == "best":
            # Before any episode has ended there is nothing to rank by; the latest is as good as any.
            return max((self.rank(step, seed) or (False, -math.inf), step) for step in known)[1]
        if not str(which).isdecimal():
            raise CheckpointError(f"checkpoint must be best, latest or an iteration, not {one_line(repr(which))}.")
        iteration = _number(str(which))
        if iteration not in known:
            there = f"{'..., ' if len(known) > _MOST_NAMED else ''}{', '.join(map(str, known[-_MOST_NAMED:]))}"
            raise CheckpointError(f"there is no checkpoint {one_line(which)} in {self._directory}; there are {there}.")
        return iteration

    def verify(
        self, iteration: int, most_bytes: int = MOST_BYTES, most_of: Mapping[str, int] | None = None, only: str = ""
    ) -> None:
        """Compare a checkpoint's files with its manifest.

        Args:
            iteration: of the checkpoint.
            most_bytes: all files together may hold.
            most_of: item -> most bytes that the files of that item together may hold.
            only: item whose files alone are compared; all by default.

        Raises:
            DamagedCheckpointError: they are not the ones written.
        """
        folder = self._folder(iteration)
        try:
            if folder.is_symlink() or not folder.is_dir():
                raise CheckpointError("it is no folder")
            manifest = verify(folder, most_bytes, most_of, only)
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
        named = placed_leaves(like, shardings)
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
            ConfigError: the run has no such seed.
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
        if bytes_of(named) > MOST_POLICY_BYTES:
            raise CheckpointError(
                f"the configuration of {self._directory.parent} asks for a policy of {bytes_of(named):,} bytes, "
                f"and at most {MOST_POLICY_BYTES:,} are read."
            )
        arrays = self._read(iteration, {"policy": named})
        restored = jax.tree.unflatten(jax.tree.structure(tree), [arrays[name] for name in named])
        if axis:
            position = seeds.index(self._config.check_seed(seed))
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

    def _folder(self, iteration: int) -> Path:
        return self._directory / str(iteration)

    def hash(self, iteration: int) -> str:
        """Return the SHA-256, in hexadecimal, of a checkpoint's manifest, which holds that of each of its files.

        Raises:
            CheckpointError: it cannot be read.
        """
        return manifest_hash(self._folder(iteration))

    def rank(self, iteration: int, seed: int) -> tuple[bool, float] | None:
        """Return what a seed's checkpoint is ranked by, None where it does not compete for best.

        That is whether it has a mean return of the kind that the configuration ranks by, of evaluations or of training,
        and that return, or the other. Off the interval only the run's last competes: when a run was stopped must not
        decide which policy is best.

        Raises:
            DamagedCheckpointError: its manifest cannot be read.
        """
        if iteration % self._config.record.checkpoint_every and iteration != self._config.total_iterations:
            return None
        try:
            manifest = read_manifest(self._folder(iteration))
        except CheckpointError as error:
            raise DamagedCheckpointError(f"checkpoint {self._folder(iteration)} is damaged: {error}.") from error
        kinds = (TRAINING_RETURNS, EVALUATION_RETURNS)
        wanted = kinds[self._config.record.evaluation_interval > 0]
        for name in sorted(kinds, key=lambda kind: kind != wanted):
            returns = manifest.get(name)
            value = returns.get(str(seed)) if isinstance(returns, dict) else None
            if isinstance(value, (int, float)):
                return name == wanted, float(value)
        return None

    def _read(self, iteration: int, items: Mapping[str, Mapping[str, jax.ShapeDtypeStruct]]) -> dict[str, jax.Array]:
        folder, whole = self._folder(iteration), "training" in items
        # Before any array: where the configurations differ, so do shapes, and it is the field that has to be named.
        self.verify(iteration, only="config/")
        self._check_config(folder, whole=whole)
        most_of = {item: 2 * bytes_of(wanted) + _SLACK_BYTES for item, wanted in items.items()}
        self.verify(iteration, sum(most_of.values()) if whole else MOST_BYTES, most_of)
        arrays: dict[str, jax.Array] = {}
        for item, wanted in items.items():
            arrays |= read_arrays(folder / item, wanted, f"checkpoint {folder}")
        return arrays

    def _check_config(self, folder: Path, *, whole: bool) -> None:
        """Compare the configuration that the checkpoint was written under with the run's.

        Equal shapes do not make the same run: another activation, for instance, is another policy.
        """
        try:
            written = from_dict(read_json(folder / "config" / "metadata"), f"the configuration of checkpoint {folder}")
        except (ConfigError, RunFolderError) as error:
            raise CheckpointError(str(error)) from error
        theirs, ours = ({name: value for name, value, _ in walk(one)} for one in (written, self._config))
        # A policy at work may know its environment's code under another name.
        different = [name for name in shaping_differences(written, self._config) if whole or name != "environment"]
        if different:
            told = ", ".join(f"{name} {one_line(theirs[name])}, not {one_line(ours[name])}" for name in different[:4])
            raise CheckpointError(
                f"checkpoint {folder} does not belong to this run's config.json: it was written under {told}."
            )


def _number(name: str) -> int | None:
    # Iterations are counted in int32.
    return int(name) if name.isdecimal() and len(name) <= 10 and int(name) < 2**31 else None
