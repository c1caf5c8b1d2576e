"""Keys that scripts and users rely on: of `--json`, and of the reports behind it."""

from __future__ import annotations

BENCH_KEYS = {
    "num_envs",
    "physics_steps_per_second",
    "rollout_steps_per_second",
    "training_steps_per_second",
    "training_to_physics",
    "fisher_product_forward_passes",
    "parts_ms",
    "first_iteration_seconds",
    "peak_memory_bytes",
}

EVALUATION_KEYS = [
    "episodes",
    "return_mean",
    "return_std",
    "return_iqm",
    "return_min",
    "return_quantile_05",
    "return_cvar_05",
    "length_mean",
    "failure_rate",
    "failure",
    "nonfinite_rate",
    "return_quantile_25",
    "return_quantile_50",
    "return_quantile_75",
    "return_quantile_95",
    "return_max",
    "length_min",
    "length_max",
]
