"""One tree of frozen dataclasses: everything a run depends on, validated when built.

The field docstrings are the command line's manual. A `Config` with a number that cannot work never
exists; whether its task does is found out where it is loaded.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from tyro.conf import Positional
from tyro.conf import arg as tyro_argument

from trpo_brax.checked import (
    FINITE,
    FRACTION,
    MOST_TEXT,
    POSITIVE,
    Bounds,
    Checked,
    Count,
    from_fields,
    replace_fields,
    suggest,
    walk,
)
from trpo_brax.errors import ConfigError

Backend = Literal["spring", "positional", "generalized", "mjx"]
Activation = Literal["tanh", "swish", "relu", "elu"]
Mode = Literal["trpo", "natural_gradient"]
CriticMethod = Literal["gauss_newton", "adam"]
Platform = Literal["auto", "cpu", "gpu"]
MOST_DELAY = 8
"""Control steps by which the observations of a perturbed world can come late."""
MOST_METRICS = 1000
"""Numbers by name in an environment's `State.metrics`, and in a record."""
MOST_CHARACTERS = 200
"""Of a name in an environment's State, and in a record."""
SQUARABLE = 2.0**64
"""Squares of anything larger are more than a float32 holds, and those of its inverse less."""
NAME = re.compile(r"[\w.:<>-]*")
"""Of a task or an environment: it stands in messages and in pictures, where a dollar sign begins a formula."""
_GONE = ("damping_patience", "damping_growth", "damping_levels")
MAY_CHANGE = "may change when a run is resumed: it does not shape learning"


@dataclass(frozen=True)
class RolloutConfig(Checked):
    """How experience is gathered."""

    backend: Backend = "spring"
    """Physics: spring (fastest), positional, generalized or mjx; scores do not compare across them."""
    num_envs: Annotated[int, Count(4)] = 256
    """Environments stepped in parallel."""
    unroll_length: Annotated[int, Count(4)] = 128
    """Control steps taken in each environment per iteration; an iteration's batch is num_envs x unroll_length."""
    episode_length: Annotated[int, Count(1)] = 1000
    """Time limit of an episode in control steps; reaching it is not an end of the task, its value is bootstrapped."""
    action_repeat: Annotated[int, Count(1)] = 1
    """Simulator steps per control step; their rewards are summed and repeating stops where the episode ends."""
    spread_initial_steps: bool = True
    """Start the environments' time limits spread over an episode, so that they do not all end together for ever."""
    action_low: Annotated[float, FINITE] | None = None
    """Lowest action of an environment of your own; overrides what the environment says."""
    action_high: Annotated[float, FINITE] | None = None
    """Highest action of an environment of your own; overrides what the environment says."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.action_low is None) != (self.action_high is None):
            raise ConfigError("action_low and action_high must be given together.")
        if self.action_low is not None and self.action_high is not None and self.action_low >= self.action_high:
            raise ConfigError(
                f"action_low must be less than action_high, not {self.action_low:g} and {self.action_high:g}."
            )


@dataclass(frozen=True)
class NetworkConfig(Checked):
    """Policy and critic networks: two separate multilayer perceptrons."""

    policy_hidden_sizes: tuple[Annotated[int, Bounds(1, 2**16)], ...] = (64, 64)
    """Units in each hidden layer of the policy."""
    critic_hidden_sizes: tuple[Annotated[int, Bounds(1, 2**16)], ...] = (64, 64)
    """Units in each hidden layer of the critic."""
    activation: Activation = "tanh"
    """Activation of the hidden layers: tanh, swish, relu or elu."""
    initial_log_std: Annotated[float, Bounds(-10.0, 2.0)] = -0.5
    """Initial log standard deviation of every action, in units of half the action range."""
    final_log_std: Annotated[float, Bounds(-10.0, 2.0)] | None = None
    """What it is led to, linearly over anneal_steps, to stay there; by default it is learned, as the means are."""
    policy_output_scale: Annotated[float, POSITIVE] = 0.01
    """Orthogonal initialisation scale of the policy's last layer; small centres the first actions on mid-range."""
    bounded_means: bool = True
    """Keep the mean of an action within its bounds, by tanh; else it lies anywhere, and what is drawn is clipped."""
    observation_clip: Annotated[float, POSITIVE] = 10.0
    """Normalised observations are clipped to plus or minus this many standard deviations."""


@dataclass(frozen=True)
class TrustRegionConfig(Checked):
    """The policy's update."""

    mode: Mode = "trpo"
    """trpo: natural gradient with line search and acceptance test; natural_gradient: the full step without either."""
    max_kl: Annotated[float, POSITIVE] = 0.01
    """Trust region: largest mean KL(old || new) of an accepted step, in nats; noise that is led comes on top."""
    final_max_kl: Annotated[float, POSITIVE] | None = None
    """What max_kl falls to, linearly over anneal_steps, to stay there; by default it stays as it is."""
    discount: Annotated[float, Bounds(0.0, 1.0)] = 0.998
    """Discount of future rewards per control step (gamma); of the first iteration, where final_discount is given."""
    final_discount: Annotated[float, Bounds(0.0, 0.99999)] | None = None
    """What discount goes to over anneal_steps, the horizon 1 / (1 - gamma) geometrically; by default it stays."""
    trace_decay: Annotated[float, Bounds(0.0, 1.0)] = 0.99
    """Decay of the advantage estimator's traces (lambda): 0 trusts the critic most, 1 not at all."""
    damping: Annotated[float, Bounds(0.0)] = 0.1
    """Added to the Fisher matrix's diagonal (lambda in F + lambda I)."""
    cg_iterations: Annotated[int, Count(1)] = 10
    """Most conjugate gradient iterations."""
    cg_tolerance: Annotated[float, Bounds(0.0)] = 1e-3
    """Conjugate gradient, the critic's too, stops when the norm of residual over gradient is at most this."""
    fisher_fraction: Annotated[float, FRACTION] = 0.1
    """Fraction of the time steps used for Fisher products, rounded to every k-th; gradient and line search see all."""
    line_search_steps: Annotated[int, Count(1)] = 10
    """Most step lengths tried."""
    backtrack_factor: Annotated[float, Bounds(0.0, 1.0, low_open=True, high_open=True)] = 0.7
    """Each further trial multiplies the step length by this."""
    acceptance_ratio: Annotated[float, Bounds(0.0, 1.0, high_open=True)] = 0.1
    """Least surrogate improvement of an accepted step, as a fraction of its linear prediction."""


@dataclass(frozen=True)
class CriticConfig(Checked):
    """The value function's fit to normalised targets, least squares."""

    critic: CriticMethod = "gauss_newton"
    """gauss_newton: second-order steps on the whole batch, without a learning rate; adam: passes over minibatches."""
    critic_steps: Annotated[int, Count(1)] = 1
    """Gauss-Newton steps per iteration."""
    critic_damping: Annotated[float, Bounds(0.0)] = 1e-3
    """Added to the Gauss-Newton matrix's diagonal."""
    critic_cg_iterations: Annotated[int, Count(1)] = 10
    """Most conjugate gradient iterations of a Gauss-Newton step."""
    critic_fraction: Annotated[float, FRACTION] = 0.25
    """Fraction of the time steps used for Gauss-Newton products, rounded to every k-th; gradient and loss see all."""
    critic_learning_rate: Annotated[float, POSITIVE] = 1e-3
    """Learning rate of adam."""
    critic_epochs: Annotated[int, Count(1)] = 2
    """Passes of adam over the batch per iteration."""
    critic_minibatches: Annotated[int, Count(1)] = 8
    """Minibatches per pass of adam, each of all environments and a share of the time steps."""


@dataclass(frozen=True)
class RecordConfig(Checked):
    """What is kept and told of a run; nothing here shapes learning."""

    checkpoint_every: Annotated[int, Count(1), MAY_CHANGE] = 25
    """Iterations between checkpoints; there is always one at the end."""
    checkpoints_to_keep: Annotated[int, Count(1), MAY_CHANGE] = 3
    """Latest checkpoints kept, besides the best: by evaluation return, or training return where eval_every is 0."""
    final_evaluation_episodes: Annotated[int, Bounds(0, 10**6), MAY_CHANGE] = 128
    """Episodes of the last policy, acting by its mean action, evaluated when training has finished; 0: none."""
    eval_every: Annotated[int | None, Count(0), MAY_CHANGE] = None
    """Iterations between evaluations by the mean action, besides one at each checkpoint; 0: none before the end."""
    eval_episodes: Annotated[int, Bounds(1, 10**6), MAY_CHANGE] = 128
    """Episodes of each of those evaluations."""

    @property
    def evaluation_interval(self) -> int:
        """Iterations between evaluations; that of checkpoints where eval_every does not say, 0 where there are none."""
        return self.checkpoint_every if self.eval_every is None else self.eval_every


@dataclass(frozen=True)
class RuntimeConfig(Checked):
    """Where and how the program runs; nothing here shapes learning."""

    platform: Annotated[Platform, MAY_CHANGE] = "auto"
    """auto: what JAX finds; cpu; gpu: fail where there is none."""
    cpu_devices: Annotated[int | None, Bounds(1, 4096), MAY_CHANGE] = None
    """CPU devices of a process to shard environments over; by default what divides num_envs, up to the usable cores."""
    coordinator: Annotated[str | None, MAY_CHANGE] = None
    """HOST:PORT of process 0, where several processes train one run; srun needs none of these three."""
    num_processes: Annotated[int | None, Bounds(1), MAY_CHANGE] = None
    """How many processes train the run together."""
    process_id: Annotated[int | None, Bounds(0), MAY_CHANGE] = None
    """Which of them this is, from 0."""
    max_chunk_seconds: Annotated[float, POSITIVE, MAY_CHANGE] = 10.0
    """Most seconds of compiled iterations in flight, so that the console, a stop and a save never wait longer."""
    max_nonfinite_share: Annotated[float, Bounds(0.0, 1.0), MAY_CHANGE] = 0.5
    """Largest share of an iteration's transitions that may be cut off as not finite; above it the run stops."""
    check_finite: Annotated[bool, MAY_CHANGE] = False
    """Look at each iteration by itself and dump the first that meets a non-finite number, for trpo-brax replay."""
    deterministic: Annotated[bool, MAY_CHANGE] = False
    """Let XLA choose only operations that a GPU repeats bit for bit; slower there, and no difference on a CPU."""
    compilation_cache: Annotated[str, MAY_CHANGE] = "auto"
    """Directory of the persistent compilation cache; auto: in the user's cache directory; none: no cache."""


@dataclass(frozen=True)
class Config(Checked):
    """Everything a training run depends on."""

    task: Annotated[str, Positional, tyro_argument(metavar="TASK")] = "inverted_pendulum"
    """Brax task to train on; its preset sets every other default. `trpo-brax tasks` lists them."""
    environment: str | None = None
    """A brax.envs.Env of your own instead of the task, as package.module:Class or :function that makes one."""
    environment_arguments: str | None = None
    """Keyword arguments to make it with, as a JSON object: '{"goal": 2}'."""
    seed: Annotated[int, Bounds(0, 2**32 - 1)] = 0
    """Seed of every random draw of the run; of the first one, where there are several."""
    num_seeds: Annotated[int, Bounds(1, 10_000)] = 1
    """Independent runs trained side by side in one compiled program, with the seeds seed, seed + 1, ..."""
    total_steps: Annotated[int, Bounds(1, 10**18), MAY_CHANGE] = 1_000_000
    """Control steps to train each seed for, summed over environments; rounded up to whole iterations."""
    anneal_steps: Annotated[int, Count(1)] | None = None
    """Control steps until final_max_kl, final_discount and final_log_std; total_steps may change later, this not."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    trust_region: TrustRegionConfig = field(default_factory=TrustRegionConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    record: RecordConfig = field(default_factory=RecordConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        if isinstance(self.environment_arguments, str):
            object.__setattr__(self, "environment_arguments", one_spelling(self.environment_arguments))
        super().__post_init__()
        if self.environment is not None and not NAME.fullmatch(self.environment):
            raise ConfigError(f"environment must be package.module:Class or :function, not {self.environment!r}.")
        if self.environment_arguments is not None and self.environment is None:
            raise ConfigError("environment_arguments are for an environment of your own; give environment, too.")
        region = self.trust_region
        led = any(last is not None for last in (region.final_max_kl, region.final_discount, self.network.final_log_std))
        if led != (self.anneal_steps is not None):
            raise ConfigError("anneal_steps must be given together with final_max_kl, final_discount or final_log_std.")
        if region.final_discount is not None and region.discount == 1:
            raise ConfigError(
                "final_discount needs a discount below 1, its horizon is 1 / (1 - discount); None keeps the discount."
            )
        if self.seed + self.num_seeds > 2**32:
            raise ConfigError(f"seed + num_seeds must be at most 2^32, not {self.seed} + {self.num_seeds}.")

    @property
    def seeds(self) -> range:
        """The seeds trained."""
        return range(self.seed, self.seed + self.num_seeds)

    @property
    def environment_options(self) -> list[str]:
        """Words of a command line that name the user's own environment; none for a task."""
        named = {"--environment": self.environment, "--environment-arguments": self.environment_arguments}
        return [word for option, value in named.items() if value is not None for word in (option, value)]

    def check_seed(self, policy_seed: int | None) -> int:
        """Return the seed whose policy is meant, the first by default.

        Raises:
            ConfigError: there is no such seed.
        """
        if policy_seed is None:
            return self.seed
        if policy_seed not in self.seeds:
            span = f"{self.seed}" if self.num_seeds == 1 else f"{self.seed} to {self.seeds[-1]}"
            raise ConfigError(f"policy_seed must be one of the run's seeds, {span}, not {policy_seed}.")
        return policy_seed

    @property
    def steps_per_iteration(self) -> int:
        """Control steps in one iteration's batch of one seed."""
        return self.rollout.num_envs * self.rollout.unroll_length

    @property
    def total_iterations(self) -> int:
        """Iterations that `total_steps` rounds up to."""
        return -(-self.total_steps // self.steps_per_iteration)


def override(config: Config, **values: Any) -> Config:
    """Return `config` with fields replaced by name, wherever in the tree they stand (names are unique in it).

    Raises:
        ConfigError: a name is unknown (the nearest are suggested) or a value cannot work.
    """
    if not isinstance(config, Config):
        raise ConfigError(f"config must be a Config, such as preset() returns for a task, not {config!r:.40}.")
    known = {name for name, _, _ in walk(config)}
    for name in values:
        if name not in known:
            raise ConfigError(f"unknown configuration field {name!r}{suggest(name, known)}")
    replaced: Config = replace_fields(config, values)
    return replaced


def shaping_differences(old: Config, new: Config) -> list[str]:
    """Return the names of the fields that differ and shape learning, so that a resume must refuse them."""
    values = {name: value for name, value, _ in walk(old)}
    return [name for name, value, hint in walk(new) if MAY_CHANGE not in get_args(hint) and values[name] != value]


def one_spelling(arguments: str) -> str:
    """Return a JSON object as it is compared and kept.

    Raises:
        ConfigError: it is none.
    """
    try:
        given = json.loads(arguments)
        spelled = json.dumps(given, sort_keys=True, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"environment_arguments are not valid JSON: {error}.") from error
    if not isinstance(given, dict) or len(spelled) > MOST_TEXT:
        raise ConfigError(f"environment_arguments must be a JSON object of at most {MOST_TEXT} characters.")
    return spelled


def to_dict(config: Checked) -> dict[str, Any]:
    """Return the tree as JSON-ready dictionaries."""
    return dataclasses.asdict(config)


def from_dict(data: Any, where: str = "the configuration") -> Config:
    """Build a `Config` from `to_dict`'s output; unknown and missing fields are refused by name.

    A setting that does not shape learning and came with a later version takes its default; those that are gone, and did
    nothing in any recorded run, are passed over.

    Raises:
        ConfigError: with one sentence that names `where` and the field.
    """
    if isinstance(data, dict):
        data = {"environment_arguments": None} | data
        if isinstance(settings := data.get("trust_region"), dict):
            data["trust_region"] = {name: value for name, value in settings.items() if name not in _GONE}
    return typing.cast(Config, from_fields(Config, data, where, MAY_CHANGE))
