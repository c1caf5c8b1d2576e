"""Naming an operation: a table of planted faults, and what is said where none can be named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from trpo_brax.forensics.blame import Culprit, find_culprit, names, not_finite

VALUES = jnp.array([1.0, 2.0, -3.0, 4.0])
HERE = Path(__file__)
ZERO = "nan or inf, dividing by zero"


def line(marker: str) -> str:
    """Return `file.py:line ` of the line of this file that ends with a marker."""
    numbers = [
        number for number, text in enumerate(HERE.read_text().splitlines(), 1) if text.endswith(f"# planted: {marker}")
    ]
    assert len(numbers) == 1, marker
    return f"{HERE}:{numbers[0]} "


def blamed(function: Callable[..., Any], *arguments: Any) -> Culprit:
    culprit = find_culprit(function, {f"x{number}": argument for number, argument in enumerate(arguments)})
    assert culprit is not None
    return culprit


def logarithm(x: jax.Array) -> jax.Array:
    return jnp.log(x)  # planted: log


def root(x: jax.Array) -> jax.Array:
    return jnp.sqrt(x)  # planted: sqrt


def nothing_by_nothing(x: jax.Array) -> jax.Array:
    return (x - x) / (x - x)  # planted: 0/0


def reciprocal(x: jax.Array) -> jax.Array:
    return 1 / (x - 4.0)  # planted: 1/0


def overflow(x: jax.Array) -> jax.Array:
    return jnp.exp(1000 * x)  # planted: exp


def product(x: jax.Array) -> jax.Array:
    return (1e30 * x) @ (1e30 * x)  # planted: product


def difference(x: jax.Array) -> jax.Array:
    infinity = 1e30 * jnp.abs(x) * 1e30
    return infinity - infinity  # planted: inf - inf


@jax.custom_jvp
def custom(x: jax.Array) -> jax.Array:
    return jnp.log(x)  # planted: custom_jvp


custom.defjvp(lambda primals, tangents: (custom(*primals), tangents[0] / primals[0]))  # planted: rule


def scanned(x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda carry, row: (carry, root(row)), 0.0, x)[1]


def scanned_to_infinity(x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda carry, row: (carry, overflow(row)), 0.0, x)[1]


def looped(x: jax.Array) -> jax.Array:
    """5, 1.61, 0.476, -0.743, nan."""
    step = lambda carry: (carry[0] + 1, logarithm(carry[1]))
    return jax.lax.while_loop(lambda carry: carry[0] < 9, step, (0, jnp.abs(x[0]) + 4))[1]


def mapped_loop(x: jax.Array) -> jax.Array:
    return jax.vmap(lambda v: jax.lax.while_loop(lambda c: c < 4, lambda c: jnp.sqrt(c - 9), v))(x)  # planted: mapped


@pytest.mark.parametrize(
    ("function", "operation", "value", "marker"),
    [
        (logarithm, "log", "nan", "log"),
        (jax.vmap(logarithm), "log", "nan", "log"),
        (jax.jit(logarithm), "log", "nan", "log"),
        (jax.checkpoint(logarithm), "log", "nan", "log"),
        (lambda x: jnp.sum(root(x)[1:]), "sqrt", "nan", "sqrt"),
        (lambda x: logarithm(x.astype(jnp.bfloat16)), "log", "nan", "log"),
        (nothing_by_nothing, "div", ZERO, "0/0"),
        (reciprocal, "div", ZERO, "1/0"),
        (difference, "sub", "nan", "inf - inf"),
        (overflow, "exp", "inf", "exp"),
        (lambda x: -overflow(x), "exp", "inf", "exp"),
        (jax.jit(jax.vmap(overflow)), "exp", "inf", "exp"),
        (product, "dot_general", "inf", "product"),
        (custom, "log", "nan", "custom_jvp"),
        (jax.grad(lambda x: jnp.sum(custom(jnp.abs(x) * 0 + 1) * x[0] + custom(x * 0))), "div", ZERO, "rule"),
        (jax.grad(lambda x: jnp.sum(jnp.where(x > 9, root(x - 9), 0.0))), "sqrt", "nan", "sqrt"),
        (scanned, "sqrt", "nan", "sqrt"),
        (scanned_to_infinity, "exp", "inf", "exp"),
        (looped, "log", "nan", "log"),
        (lambda x: jnp.where(x > 0, logarithm(x), 0.0), "log", "nan", "log"),  # masked: said in the sentence
        (jax.jit(lambda x: jax.lax.fori_loop(0, 3, lambda _, y: root(y - 1), x)), "sqrt", "nan", "sqrt"),
        (lambda x: jax.lax.cond(x[2] < 0, logarithm, root, x), "log", "nan", "log"),
        (jax.vmap(lambda v: jax.lax.cond(v < 0, lambda y: y, root, v - 9)), "sqrt", "nan", "sqrt"),
        (mapped_loop, "while", "nan", "mapped"),
    ],
)
def test_operation_value_and_line(function: Callable[..., Any], operation: str, value: str, marker: str) -> None:
    culprit = blamed(function, VALUES)
    assert (culprit.operation, culprit.value) == (operation, value)
    assert culprit.source.startswith(line(marker))
    assert culprit.given == () and culprit.called_from == ""


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jnp.sum(jnp.exp(x)),
        lambda x: jnp.max(jnp.where(x > 0, x, -jnp.inf)),
        lambda x: jax.nn.softmax(jnp.where(x > 0, x, -jnp.inf)),
        lambda x: jnp.min(jnp.where(x > 5, x, jnp.inf)),
        lambda x: jnp.where(x > 5, x, jnp.nan),
        lambda x: jnp.linalg.cholesky(jnp.outer(x, x) - 5 * jnp.eye(4)),
        lambda x: jax.lax.scan(lambda c, v: (c, jnp.sqrt(jnp.where(v > 0, v, 1.0))), 0.0, x),
    ],
)
def test_none_is_named_where_no_operation_is_checked_or_the_number_was_a_constant(
    function: Callable[..., Any],
) -> None:
    assert find_culprit(function, {"x": VALUES}) is None


def test_sentences_say_it_all() -> None:
    culprit = blamed(lambda x, distance: logarithm(x) + distance, VALUES, jnp.full(2, jnp.inf).repeat(2))
    assert str(culprit) == (
        f"log gave nan, at {line('log')}(logarithm). Not finite to begin with: x1. "
        "It is the first that did; one whose result is masked later on counts too."
    )


def test_inputs_that_were_not_finite_are_named() -> None:
    weights = {"layers": [jnp.ones((2, 2)), jnp.array([[1.0, 2.0], [jnp.nan, 1.0]])]}

    def function(x: jax.Array, parameters: Any) -> jax.Array:
        return jnp.tanh(x @ parameters["layers"][0]) @ parameters["layers"][1]  # planted: parameters

    culprit = blamed(function, jnp.ones(2), weights)
    assert culprit.operation == "dot_general" and culprit.source.startswith(line("parameters"))
    assert culprit.given == ("x1.layers.1",)


def test_many_inputs_are_counted() -> None:
    many = {str(number): jnp.full(1, jnp.nan) for number in range(6)}
    assert "x0.0, x0.1, x0.2, x0.3 and 2 more." in str(blamed(lambda given: jnp.log(given["0"]), many))


def test_installed_code_is_named_with_its_caller() -> None:
    layer = nn.Dense(2, kernel_init=nn.initializers.ones)
    parameters = layer.init(jax.random.PRNGKey(0), VALUES)

    def function(x: jax.Array) -> jax.Array:
        return layer.apply(parameters, 8e37 * jnp.abs(x))  # planted: layer

    culprit = blamed(function, VALUES)
    assert culprit.operation == "dot_general" and "flax" in culprit.source
    assert culprit.called_from.startswith(line("layer")) and f"called from {line('layer')}" in str(culprit)


def test_errors_of_the_function_itself_are_not_swallowed() -> None:
    def function(x: jax.Array) -> jax.Array:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        find_culprit(function, {"x": VALUES})


def test_names_of_what_is_not_finite() -> None:
    tree = {"a": jnp.array([1.0, jnp.inf]), "b": [jnp.arange(2), jnp.array(jnp.nan)], "c": jnp.ones(2)}
    assert names(not_finite(tree)) == ("a", "b.1")
