"""The trust-region step's pieces, and loops over them long enough to time."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from trpo_brax.algorithm import Distribution, PolicyUpdate, StepSamples


class TimedUpdate(PolicyUpdate):
    """`PolicyUpdate` with loops over its smallest pieces."""

    def chained(self, count: int) -> Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]:
        """Return `count` Fisher products one after the other, without a loop, to be counted.

        (vector [P], observations [S, observation], weights [S], direction [P]) -> [P]; two less one is a product
        without its linearisation.
        """

        def products(vector: jax.Array, observations: jax.Array, weights: jax.Array, direction: jax.Array) -> jax.Array:
            with jax.default_matmul_precision("highest"):
                product = self.product(vector, observations, weights)
                for _ in range(count):
                    direction = product(direction)
                return direction

        return products

    def products(self, vector: jax.Array, samples: StepSamples, count: int) -> jax.Array:
        """Linearise once and take `count` products one after the other, as conjugate gradient does."""
        with jax.default_matmul_precision("highest"):
            product = self.product(vector, samples.fisher_observations, samples.fisher_weights)

            def advance(_: int, direction: jax.Array) -> jax.Array:
                result = product(direction)
                return result / jnp.linalg.norm(result)

            return jax.lax.fori_loop(0, count, advance, jnp.ones_like(vector))

    def forward_passes(self, vector: jax.Array, samples: StepSamples, count: int) -> Distribution:
        """Take `count` forward passes over the Fisher samples one after the other.

        Each one's parameters depend on the last one's outcome, by next to nothing: a pass that depended on nothing
        would be taken out of the loop.
        """

        def advance(_: int, last: Distribution) -> Distribution:
            change = jax.tree.leaves(last)[0].ravel()[0]
            return self.policy(vector + 1e-30 * change, samples.fisher_observations)

        return jax.lax.fori_loop(1, count, advance, self.policy(vector, samples.fisher_observations))
