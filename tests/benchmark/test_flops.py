"""What a Fisher product costs, by XLA's count against the closed form."""

from __future__ import annotations

from unittest import mock

import pytest

from experiments.benchmarks import closed_form
from trpo_brax.benchmark.flops import counting_device, product_forward_passes
from trpo_brax.config import NetworkConfig, TrustRegionConfig
from trpo_brax.errors import UserError
from trpo_brax.policy import ActionBounds, Networks


def cost(hidden: tuple[int, ...], observation: int, action: int, samples: int) -> float:
    networks = Networks.build(
        NetworkConfig(policy_hidden_sizes=hidden), observation, ActionBounds((-1,) * action, (1,) * action)
    )
    return product_forward_passes(networks, TrustRegionConfig(), samples)


@pytest.mark.parametrize(
    ("hidden", "observation", "action"), [((64, 64), 11, 3), ((64, 64), 27, 8), ((32,), 40, 20), ((64, 32, 64), 8, 4)]
)
def test_a_product_costs_what_tangent_and_cotangent_sweep_must(
    hidden: tuple[int, ...], observation: int, action: int
) -> None:
    # As many samples as in training: what is done once for all of them, to vectors of parameters, is then little.
    least = closed_form((observation, *hidden, action))
    assert least < cost(hidden, observation, action, samples=4096) < 1.05 * least


def test_the_closed_form_by_hand() -> None:
    # hopper: 11 x 64 + 64 x 64 + 64 x 3 = 4992, of which the first layer's 704 have no input that changes.
    assert closed_form((11, 64, 64, 3)) == pytest.approx(4 - 2 * 704 / 4992)
    # A linear policy: one product for the tangent, one for the cotangent.
    assert closed_form((5, 3)) == 2.0


def test_a_product_over_more_samples_costs_the_same_in_forward_passes() -> None:
    assert cost((64, 64), 11, 3, 1024) == pytest.approx(cost((64, 64), 11, 3, 8192), rel=0.01)


def test_without_a_cpu_to_count_on_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jax.local_devices", mock.Mock(side_effect=RuntimeError("Unknown backend cpu")))
    with pytest.raises(UserError, match="add cpu"):
        counting_device()
