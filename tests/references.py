"""Independent references in float64 NumPy: plain loops, explicit formulas, dense matrices; nothing of the package."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import scipy.stats
from numpy.typing import NDArray

Array = NDArray[np.float64]
Network = dict[str, Array]
"""A network with one tanh hidden layer: w1 [I, H], b1 [H], w2 [H, O], b2 [O], and log_std [O] where it is a policy."""


# Advantages


def generalized_advantages(
    rewards: Array,
    values: Array,
    next_values: Array,
    terminations: NDArray[np.bool_],
    dones: NDArray[np.bool_],
    discount: float,
    trace_decay: float,
    valid: NDArray[np.bool_] | None = None,
) -> tuple[Array, Array]:
    """Return advantages and value targets [T, N], one environment and one step at a time."""
    length, environments = rewards.shape
    advantages = np.zeros((length, environments))
    for n in range(environments):
        following = 0.0
        for t in reversed(range(length)):
            if valid is not None and not valid[t, n]:
                following = 0.0
                continue
            bootstrap = 0.0 if terminations[t, n] else discount * float(next_values[t, n])
            delta = float(rewards[t, n]) + bootstrap - float(values[t, n])
            following = delta if dones[t, n] else delta + discount * trace_decay * following
            advantages[t, n] = following
    return advantages, advantages + values


# Gaussian densities


def mean_of_clipped(mean: Array, std: Array | float) -> Array:
    """Return E clip(a, -1, 1) = -1 + the integral of P(a > t) over [-1, 1], for normal a, by the trapezoidal rule."""
    places = np.linspace(-1.0, 1.0, 4001)
    above = scipy.stats.norm.sf(places, mean[..., None], np.broadcast_to(std, mean.shape)[..., None])
    result: Array = np.trapezoid(above, places, axis=-1) - 1.0
    return result


def gaussian_log_prob(mean: Array, log_std: Array, actions: Array) -> Array:
    """Return log N(actions; mean, exp(log_std)^2) summed over the last axis."""
    variance = np.exp(log_std) ** 2
    return np.sum(-((actions - mean) ** 2) / (2 * variance) - 0.5 * np.log(2 * np.pi * variance), axis=-1)


def gaussian_kl(mean: Array, log_std: Array, new_mean: Array, new_log_std: Array) -> Array:
    """Return KL(old || new) of diagonal Gaussians: log(s'/s) + (s^2 + (m - m')^2) / (2 s'^2) - 1/2, summed."""
    std, new_std = np.exp(log_std), np.exp(new_log_std)
    ratio = (std**2 + (mean - new_mean) ** 2) / (2 * new_std**2)
    return np.sum(np.log(new_std / std) + ratio - 0.5, axis=-1)


# One-hidden-layer networks and their Jacobians


def network_output(network: Network, inputs: Array) -> Array:
    """Return the output [..., O] for inputs [..., I]."""
    return np.tanh(inputs @ network["w1"] + network["b1"]) @ network["w2"] + network["b2"]


def flatten(network: Network) -> Array:
    """Return one vector of all parameters, in alphabetical order of their names."""
    return np.concatenate([np.asarray(network[name], np.float64).ravel() for name in sorted(network)])


def unflatten(vector: Array, like: Network) -> Network:
    """Return the inverse of `flatten`."""
    result, start = {}, 0
    for name in sorted(like):
        size = like[name].size
        result[name] = vector[start : start + size].reshape(like[name].shape)
        start += size
    return result


def network_jacobian(network: Network, inputs: Array) -> Array:
    """Return d output / d parameters [S, O, P] at inputs [S, I], in `flatten`'s order; log_std's columns are 0."""
    hidden = np.tanh(inputs @ network["w1"] + network["b1"])
    slope = 1.0 - hidden**2
    samples, outputs = len(inputs), network["w2"].shape[1]
    into_hidden = slope[:, :, None] * network["w2"][None]  # [S, H, O]
    derivatives = {
        "b1": into_hidden.transpose(0, 2, 1),
        "b2": np.broadcast_to(np.eye(outputs), (samples, outputs, outputs)),
        "w1": np.einsum("si,sho->soih", inputs, into_hidden),
        "w2": np.einsum("sh,ok->sohk", hidden, np.eye(outputs)),
    }
    if "log_std" in network:
        derivatives["log_std"] = np.zeros((samples, outputs, outputs))
    blocks = [derivatives[name].reshape(samples, outputs, -1) for name in sorted(network)]
    return np.concatenate(blocks, axis=-1)


def gaussian_jacobian(policy: Network, observations: Array) -> Array:
    """Return d (mean, log_std) / d parameters [S, 2 A, P] of a policy with a state-independent log_std."""
    of_mean = network_jacobian(policy, observations)
    one = {name: np.zeros((value.size, policy["log_std"].size)) for name, value in policy.items()}
    one["log_std"] = np.eye(policy["log_std"].size)
    of_log_std = np.concatenate([one[name] for name in sorted(policy)]).T
    return np.concatenate([of_mean, np.broadcast_to(of_log_std, of_mean.shape)], axis=1)


def explicit_fisher(jacobian: Array, metric: Array, weights: Array) -> Array:
    """Return sum_s w_s J_s^T M_s J_s [P, P] from J [S, D, P], M [S, D, D] and weights [S]."""
    total = np.zeros((jacobian.shape[-1],) * 2)
    for sample_jacobian, sample_metric, weight in zip(jacobian, metric, weights, strict=True):
        total += weight * sample_jacobian.T @ sample_metric @ sample_jacobian
    return total


def gaussian_metric(log_std: Array) -> Array:
    """Return the Fisher metric of (mean, log_std) [S, 2 A, 2 A] for log_std [S, A]: 1/sigma^2 and 2."""
    diagonal = np.concatenate([np.exp(-2 * log_std), np.full_like(log_std, 2.0)], axis=-1)
    return np.stack([np.diag(row) for row in diagonal])


def categorical_metric(logits: Array) -> Array:
    """Return the Fisher metric of logits [S, K, K]: diag(p) - p p^T."""
    probabilities = softmax(logits)
    return np.stack([np.diag(p) - np.outer(p, p) for p in probabilities])


def softmax(logits: Array) -> Array:
    """Return probabilities over the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


# Linear systems


def krylov_solution(matrix: Array, rhs: Array, iterations: int) -> Array:
    """Return argmin of x^T A x / 2 - b^T x over span(b, A b, ..., A^(k-1) b): k steps of conjugate gradient."""
    basis: list[Array] = []
    vector = rhs
    for _ in range(min(iterations, len(rhs))):
        for _ in range(2):  # twice is enough to stay orthogonal
            for column in basis:
                vector = vector - (column @ vector) * column
        norm = np.linalg.norm(vector)
        if norm < 1e-12 * np.linalg.norm(rhs):
            break
        basis.append(vector / norm)
        vector = matrix @ basis[-1]
    columns = np.stack(basis, axis=1)
    return columns @ np.linalg.solve(columns.T @ matrix @ columns, columns.T @ rhs)


# The trust-region step


@dataclasses.dataclass(frozen=True)
class GaussianBatch:
    """observations [N, T, I], actions [N, T, A], advantages [N, T] and weights [N, T] that sum to one."""

    observations: Array
    actions: Array
    advantages: Array
    weights: Array

    def flat(self) -> tuple[Array, Array, Array, Array]:
        """Return the four with environments and time merged."""
        return (
            self.observations.reshape(-1, self.observations.shape[-1]),
            self.actions.reshape(-1, self.actions.shape[-1]),
            self.advantages.ravel(),
            self.weights.ravel(),
        )


@dataclasses.dataclass(frozen=True)
class TrustRegionReference:
    """Everything a trust-region step goes through."""

    gradient: Array
    damped_fisher: Array
    full_step: Array
    predicted_improvement: float
    parameters: Network
    fraction: float
    trials: int
    accepted: bool
    improvement: float
    kl_mean: float
    kl_max: float


def policy_gradient(policy: Network, batch: GaussianBatch) -> Array:
    """Return sum_s w_s A_s J_s^T score_s, the gradient of the surrogate at the old policy, in `flatten`'s order."""
    observations, actions, advantages, weights = batch.flat()
    mean, std = network_output(policy, observations), np.exp(policy["log_std"])
    standardized = (actions - mean) / std
    score = np.concatenate([standardized / std, standardized**2 - 1.0], axis=-1)
    jacobian = gaussian_jacobian(policy, observations)
    return np.einsum("s,sdp,sd->p", weights * advantages, jacobian, score)


def gaussian_fisher(policy: Network, batch: GaussianBatch, stride: int = 1) -> Array:
    """Return the Fisher matrix over every `stride`-th time step, weights renormalised over them."""
    observations = batch.observations[:, ::stride].reshape(-1, batch.observations.shape[-1])
    weights = batch.weights[:, ::stride].ravel() / batch.weights[:, ::stride].sum()
    log_std = np.broadcast_to(policy["log_std"], (len(observations), policy["log_std"].size))
    return explicit_fisher(gaussian_jacobian(policy, observations), gaussian_metric(log_std), weights)


def compare_policies(old: Network, new: Network, batch: GaussianBatch) -> tuple[float, float, float]:
    """Return surrogate improvement, mean and largest KL(old || new) of a new policy over the batch."""
    observations, actions, advantages, weights = batch.flat()
    old_mean, new_mean = network_output(old, observations), network_output(new, observations)
    difference = gaussian_log_prob(new_mean, new["log_std"], actions) - gaussian_log_prob(
        old_mean, old["log_std"], actions
    )
    kl = gaussian_kl(old_mean, old["log_std"], new_mean, new["log_std"])
    improvement = float(np.sum(weights * (np.exp(difference) - 1.0) * advantages))
    return improvement, float(np.sum(weights * kl)), float(np.max(kl[weights > 0]))


def trust_region_step(
    policy: Network,
    batch: GaussianBatch,
    *,
    max_kl: float,
    damping: float,
    cg_iterations: int,
    stride: int = 1,
    line_search_steps: int = 10,
    backtrack_factor: float = 0.7,
    acceptance_ratio: float = 0.1,
) -> TrustRegionReference:
    """Return TRPO's step (Schulman et al. 2015, appendix C) with an explicit Fisher matrix and a dense solve."""
    gradient = policy_gradient(policy, batch)
    damped = gaussian_fisher(policy, batch, stride) + damping * np.eye(len(gradient))
    direction = krylov_solution(damped, gradient, cg_iterations)
    full_step = math.sqrt(2 * max_kl / (direction @ damped @ direction)) * direction
    predicted = float(gradient @ full_step)
    origin = flatten(policy)
    for trial in range(line_search_steps):
        fraction = backtrack_factor**trial
        candidate = unflatten(origin + fraction * full_step, policy)
        improvement, kl_mean, kl_max = compare_policies(policy, candidate, batch)
        if kl_mean <= max_kl and improvement > 0 and improvement >= acceptance_ratio * fraction * predicted:
            return TrustRegionReference(
                gradient,
                damped,
                full_step,
                predicted,
                candidate,
                fraction,
                trial + 1,
                True,
                improvement,
                kl_mean,
                kl_max,
            )
    return TrustRegionReference(
        gradient, damped, full_step, predicted, policy, 0.0, line_search_steps, False, 0.0, 0.0, 0.0
    )


# Fitting a critic


@dataclasses.dataclass
class Adam:
    """Kingma & Ba 2015, algorithm 1, on one flat vector."""

    learning_rate: float
    first: Array
    second: Array
    count: int = 0

    def step(self, parameters: Array, gradient: Array) -> Array:
        """Return the parameters after one update."""
        self.count += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        mean = self.first / (1 - 0.9**self.count)
        variance = self.second / (1 - 0.999**self.count)
        return parameters - self.learning_rate * mean / (np.sqrt(variance) + 1e-8)


def squared_error(critic: Network, observations: Array, targets: Array) -> tuple[float, Array]:
    """Return the mean squared error over samples [S] and its gradient in `flatten`'s order."""
    errors = network_output(critic, observations)[:, 0] - targets
    jacobian = network_jacobian(critic, observations)[:, 0]
    return float(np.mean(errors**2)), 2.0 * errors @ jacobian / len(errors)


# Tabular Markov decision processes


@dataclasses.dataclass(frozen=True)
class TabularProcess:
    """transitions [S, A, S'], rewards [S, A], start [S] and discount."""

    transitions: Array
    rewards: Array
    start: Array
    discount: float

    @classmethod
    def random(cls, rng: np.random.Generator, states: int, actions: int, discount: float) -> TabularProcess:
        """Return a process with sparse-ish random transitions and normal rewards."""
        transitions = rng.dirichlet(np.full(states, 0.3), size=(states, actions))
        return cls(transitions, rng.standard_normal((states, actions)), rng.dirichlet(np.ones(states)), discount)

    def values(self, policy: Array) -> Array:
        """Return V [S] of policy [S, A]: (I - gamma P_pi)^-1 r_pi."""
        chain = np.einsum("sa,sat->st", policy, self.transitions)
        expected = np.sum(policy * self.rewards, axis=1)
        return np.linalg.solve(np.eye(len(chain)) - self.discount * chain, expected)

    def expected_return(self, policy: Array) -> float:
        """Return eta = E[sum_t gamma^t r_t]."""
        return float(self.start @ self.values(policy))

    def advantages(self, policy: Array) -> Array:
        """Return A(s, a) [S, A] = r + gamma E V(s') - V(s)."""
        values = self.values(policy)
        return self.rewards + self.discount * self.transitions @ values - values[:, None]

    def visitation(self, policy: Array) -> Array:
        """Return rho(s) [S] = sum_t gamma^t P(s_t = s), which sums to 1 / (1 - gamma)."""
        chain = np.einsum("sa,sat->st", policy, self.transitions)
        return np.linalg.solve(np.eye(len(chain)) - self.discount * chain.T, self.start)

    def local_approximation(self, old: Array, new: Array) -> float:
        """Return L_old(new) = eta(old) + sum_s rho_old(s) sum_a new(a|s) A_old(s, a)."""
        gain = self.visitation(old) @ np.sum(new * self.advantages(old), axis=1)
        return self.expected_return(old) + float(gain)


def categorical_kl(old: Array, new: Array) -> Array:
    """Return KL(old || new) [...] of probabilities [..., K]."""
    return np.sum(old * np.log(old / new), axis=-1)
