"""When what is due: how many iterations to dispatch at once, and after which to save and evaluate."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax.numpy as jnp

from trpo_brax.config import Config, RecordConfig
from trpo_brax.learner.program import CHUNK_CAPACITY
from trpo_brax.policy import DiagonalGaussian

_SECONDS_PER_CHUNK = 1.0


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Of one run; how chunks fall changes no result."""

    total: int
    """Iterations."""
    record: RecordConfig
    max_chunk_seconds: float
    """Most seconds of iterations in flight."""

    def chunk_length(self, dispatched: int, seconds: float | None) -> int:
        """Return how many iterations to dispatch next, where one takes `seconds`; not known yet: one, to measure."""
        if seconds is None:
            return 1
        longest = min(_SECONDS_PER_CHUNK, self.max_chunk_seconds / 2)
        length = max(1, min(CHUNK_CAPACITY, int(longest / seconds), self.total - dispatched))
        intervals = [self.record.checkpoint_every, self.record.evaluation_interval or CHUNK_CAPACITY]
        return min(length, *(every - dispatched % every for every in intervals))

    def one_at_a_time(self, seconds: float | None) -> bool:
        """Return whether two iterations in flight would be more than `max_chunk_seconds` allows."""
        return 2 * (seconds or 0.0) > self.max_chunk_seconds

    def checkpoint_due(self, iteration: int) -> bool:
        """Return whether there is to be a checkpoint after an iteration."""
        return iteration % self.record.checkpoint_every == 0 or iteration == self.total

    def evaluation_due(self, iteration: int) -> bool:
        """Return whether there is to be an evaluation after an iteration."""
        every = self.record.evaluation_interval
        return every > 0 and (iteration % every == 0 or self.checkpoint_due(iteration))


def annealing_doubts(config: Config, action_size: int) -> Iterator[str]:
    """Say where a run ends before its annealing, and where leading the noise moves the policy more than a step may."""
    if config.anneal_steps is None:
        return
    if config.total_steps < config.anneal_steps:
        yield (
            f"Training ends before what --anneal-steps {config.anneal_steps:,} leads is where it should be: give it "
            f"--total-steps {config.total_steps:,} as well, or train for longer."
        )
    first, last = config.network.initial_log_std, config.network.final_log_std
    if last is None:
        return
    mean = jnp.zeros(action_size)
    led = first + (last - first) * min(config.steps_per_iteration / config.anneal_steps, 1.0)
    kl = float(DiagonalGaussian(mean, jnp.full(action_size, first)).kl(DiagonalGaussian(mean, mean + led)))
    region = config.trust_region.final_max_kl or config.trust_region.max_kl
    if kl > region:
        yield (
            f"The noise is led so fast that it alone moves the policy by {kl:.2g} nats an iteration, more than the "
            f"{region:.2g} of the trust region: raise --anneal-steps, or take smaller batches."
        )
