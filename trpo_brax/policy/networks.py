"""The two networks: a Gaussian policy and a critic, both multilayer perceptrons in Flax Linen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from optax.tree_utils import tree_where

from trpo_brax.algorithm import all_finite
from trpo_brax.config import NetworkConfig
from trpo_brax.policy.actions import ActionBounds
from trpo_brax.policy.distributions import DiagonalGaussian
from trpo_brax.policy.observation_statistics import ObservationStatistics

Parameters = Any

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": jnp.tanh,
    "swish": nn.swish,
    "relu": nn.relu,
    "elu": nn.elu,
}


_LEAST_SPREAD = 0.01
"""Of value targets, as a share of their mean."""


class MultilayerPerceptron(nn.Module):
    """Dense layers with orthogonal initialisation (scale sqrt 2 in hidden layers), biases 0."""

    hidden_sizes: tuple[int, ...]
    output_size: int
    activation: str
    output_scale: float

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map [..., input] to [..., output]."""
        hidden = inputs
        for size in self.hidden_sizes:
            hidden = nn.Dense(size, kernel_init=nn.initializers.orthogonal(2**0.5), precision="highest")(hidden)
            hidden = _ACTIVATIONS[self.activation](hidden)
        output = nn.Dense(
            self.output_size,
            kernel_init=nn.initializers.orthogonal(self.output_scale),
            precision="highest",
            name="output",
        )
        return output(hidden)


class GaussianPolicy(nn.Module):
    """Observation -> diagonal Gaussian over actions in units of half the action range, around its centre."""

    action_size: int
    hidden_sizes: tuple[int, ...]
    activation: str
    output_scale: float
    initial_log_std: float
    learned_log_std: bool
    bounded: tuple[bool, ...]
    """[A]: whether the mean of an action component stays in its range."""

    @nn.compact
    def __call__(self, observations: jax.Array) -> DiagonalGaussian:
        """Map normalised observations [..., observation] to a distribution over [..., A].

        A bounded mean never leaves the range of the actions, which is (-1, 1): far beyond it all samples are clipped to
        one and the same action, no advantage tells one from another, and nothing leads back.
        """
        network = MultilayerPerceptron(self.hidden_sizes, self.action_size, self.activation, self.output_scale)
        output = network(observations)
        mean = jnp.tanh(output) if all(self.bounded) else jnp.where(np.array(self.bounded), jnp.tanh(output), output)
        log_std = self.param("log_std", nn.initializers.constant(self.initial_log_std), (self.action_size,))
        return DiagonalGaussian(mean, log_std if self.learned_log_std else jax.lax.stop_gradient(log_std))


@struct.dataclass
class CriticParameters:
    """A value network that works in normalised units, and the units: V(s) = mean + std network(s)."""

    network: Parameters
    mean: jax.Array
    """[]: of the value targets."""
    std: jax.Array
    """[]: of the value targets."""

    def tracking(self, mean: jax.Array, std: jax.Array, rate: jax.Array) -> CriticParameters:
        """Return the same value function in units moved towards a batch's (PopArt, arXiv 1602.07714, section 2.1).

        The moments are those of the old units' distribution and the batch's, mixed; the standard deviation never
        falls below a hundredth of the mean, so that a task that is solved, whose targets hardly differ, does not turn
        their noise into what there is to be learned.

        Args:
            mean: [] of the batch's value targets.
            std: [] of the batch's value targets.
            rate: [] share of the batch, in (0, 1].
        """
        moved = self.mean + rate * (mean - self.mean)
        variance = (1 - rate) * (jnp.square(self.std) + rate * jnp.square(mean - self.mean)) + rate * jnp.square(std)
        return self.in_units(moved, jnp.maximum(jnp.sqrt(variance), _LEAST_SPREAD * jnp.abs(moved)))

    def in_units(self, mean: jax.Array, std: jax.Array) -> CriticParameters:
        """Return the same value function in other units (PopArt, van Hasselt et al. 2016, arXiv 1602.07714).

        Args:
            mean: [] of the new value targets.
            std: [] of the new value targets; where it is not positive, or anything is not finite, the units stay.
        """
        layers = self.network["params"]
        output = {
            "kernel": layers["output"]["kernel"] * (self.std / std),
            "bias": (layers["output"]["bias"] * self.std + self.mean - mean) / std,
        }
        new = CriticParameters({"params": {**layers, "output": output}}, mean, std)
        # From huge units to tiny ones the rescaled layer itself may overflow.
        return cast(CriticParameters, tree_where(all_finite(new) & (std > 0), new, self))


def _following(layers: Parameters, old: ObservationStatistics, new: ObservationStatistics) -> Parameters:
    """Return layers that are for observations normalised by `new` what `layers` are for those normalised by `old`."""
    name = "Dense_0" if "Dense_0" in layers else "output"
    kernel, bias = layers[name]["kernel"], layers[name]["bias"]
    growth, shift = new.std() / old.std(), (new.mean - old.mean) / old.std()
    # Where a component jumps, the functions knew nothing of where it is now, and what they made of it when it hardly
    # varied is a wall there. Before there are statistics none is known.
    known = old.ready & (growth < 2) & (jnp.abs(shift) < 1)
    growth, shift = jnp.where(known, growth, 1.0), jnp.where(known, shift, 0.0)
    moved = {"kernel": kernel * growth[:, None], "bias": bias + jnp.matmul(shift, kernel, precision="highest")}
    return {**layers, name: tree_where(all_finite(moved), moved, layers[name])}


@dataclasses.dataclass(frozen=True)
class Networks:
    """Policy and critic of one task: fixed sizes, no parameters."""

    policy: GaussianPolicy
    critic: MultilayerPerceptron
    observation_size: int

    @classmethod
    def build(cls, config: NetworkConfig, observation_size: int, bounds: ActionBounds) -> Networks:
        """Return the networks that `config` asks for."""
        policy = GaussianPolicy(
            bounds.size,
            config.policy_hidden_sizes,
            config.activation,
            config.policy_output_scale,
            config.initial_log_std,
            config.final_log_std is None,
            bounds.bounded if config.bounded_means else (False,) * bounds.size,
        )
        critic = MultilayerPerceptron(config.critic_hidden_sizes, 1, config.activation, 1.0)
        return cls(policy, critic, observation_size)

    def initial_policy(self, key: jax.Array) -> Parameters:
        """Return fresh policy parameters."""
        return self.policy.init(key, jnp.zeros(self.observation_size))

    def with_log_std(self, policy: Parameters, log_std: jax.Array) -> Parameters:
        """Return policy parameters with this log standard deviation [] for every action component."""
        layers = policy["params"]
        return {"params": {**layers, "log_std": jnp.full_like(layers["log_std"], log_std)}}

    def following(
        self, policy: Parameters, critic: CriticParameters, old: ObservationStatistics, new: ObservationStatistics
    ) -> tuple[Parameters, CriticParameters]:
        """Return the same functions of raw observations, of a policy and a critic that saw them normalised by `old`.

        What CriticParameters.in_units does at the output, done at the input: with W' = W s'/s and
        b' = b + W (m' - m)/s a first layer W z + b is, for z' = (x - m')/s', what it was for z = (x - m)/s. Otherwise
        statistics that move would move the policy, and no trust region bounds that. Where the result would not be
        finite, nothing follows. An optimiser's moments stay as they are.
        """
        moved = {**policy["params"]}
        moved["MultilayerPerceptron_0"] = _following(moved["MultilayerPerceptron_0"], old, new)
        network = {"params": _following(critic.network["params"], old, new)}
        return {"params": moved}, dataclasses.replace(critic, network=network)

    def initial_critic(self, key: jax.Array) -> CriticParameters:
        """Return fresh critic parameters in units of mean 0 and standard deviation 1."""
        return CriticParameters(self.critic.init(key, jnp.zeros(self.observation_size)), jnp.zeros(()), jnp.ones(()))

    def distribution(self, parameters: Parameters, observations: jax.Array) -> DiagonalGaussian:
        """Return the action distribution over normalised observations [..., observation]."""
        return cast(DiagonalGaussian, self.policy.apply(parameters, observations))

    def normalized_value(self, network: Parameters, observations: jax.Array) -> jax.Array:
        """Return the critic network's output [...] for normalised observations [..., observation]."""
        return jnp.squeeze(cast(jax.Array, self.critic.apply(network, observations)), axis=-1)

    def value(self, parameters: CriticParameters, observations: jax.Array) -> jax.Array:
        """Return V(s) [...] in units of return, for normalised observations [..., observation]."""
        return parameters.mean + parameters.std * self.normalized_value(parameters.network, observations)
