"""Naming an operation: planted faults of every kind, and those that a mask hides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trpo_brax.forensics.blame import Culprit, find_culprit, find_guarded, not_finite

VALUES = jnp.array([1.0, 2.0, -3.0, 4.0])
HERE = Path(__file__)


def line(marker: str) -> str:
    """Return `file.py:line ` of the line of this file that ends with a marker."""
    numbers = [
        number for number, text in enumerate(HERE.read_text().splitlines(), 1) if text.endswith(f"# planted: {marker}")
    ]
    assert len(numbers) == 1, marker
    return f"{HERE}:{numbers[0]} "


def blamed(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Culprit:
    culprit = find_culprit(function, *arguments, **keywords)
    assert culprit is not None
    return culprit


@pytest.mark.parametrize(
    ("function", "operation", "value", "operands"),
    [
        (lambda x: jnp.sum(jnp.log(x)), "log", "nan", ("float32[4] -3 at [2]",)),
        (lambda x: jnp.sqrt(x)[1:], "sqrt", "nan", ("float32[4] -3 at [2]",)),
        (lambda x: (x - x) / (x - x), "div", "nan", ("float32[4] 0 at [0]", "float32[4] 0 at [0]")),
        (lambda x: 1 / (x - 4.0), "div", "inf", ("float32[] 1", "float32[4] 0 at [3]")),
        (lambda x: -jnp.exp(1000 * x), "exp", "inf", ("float32[4] 1000 at [0]",)),
        (lambda x: jnp.exp(1000 * x) - jnp.exp(999 * x), "exp", "inf", ("float32[4] 1000 at [0]",)),
        (lambda x: jnp.exp(1000 * x) * 0, "exp", "inf", ("float32[4] 1000 at [0]",)),
        (lambda x: (1e30 * x) @ (1e30 * x), "dot_general", "inf", ("float32[4] from -3e+30 to 4e+30",) * 2),
        (lambda x: jnp.take(x, jnp.array([0, 7])), "gather", "nan", ("float32[4] from -3 to 4",)),
        (lambda x: jnp.log(x.astype(jnp.bfloat16)), "log", "nan", ("bfloat16[4] -3 at [2]",)),
        (lambda x: jnp.linalg.cholesky(jnp.outer(x, x) - 5 * jnp.eye(4)), "cholesky", "nan", ()),
    ],
)
def test_operation_value_and_operands(
    function: Callable[..., Any], operation: str, value: str, operands: tuple[str, ...]
) -> None:
    culprit = blamed(function, VALUES)
    assert (culprit.operation, culprit.value, culprit.path) == (operation, value, ())
    assert culprit.operands[: len(operands)] == operands
    assert culprit.source.startswith(f"{HERE}:")


def test_one_sentence_says_it_all() -> None:
    def body(carry: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
        return carry, jnp.log(carry - scale)  # planted: sentence

    culprit = blamed(lambda x: jax.lax.scan(body, x, jnp.arange(3.0)), jnp.float32(1.5))
    where = "test_one_sentence_says_it_all.<locals>.body"
    assert str(culprit) == f"log of float32[] -0.5 gave nan, at {line('sentence')}({where}), in scan step 2."


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jnp.sum(jnp.exp(x)),
        lambda x: jnp.sum(jnp.where(x > 0, jnp.log(x), 0.0)),
        lambda x: jnp.max(jnp.where(x > 0, x, -jnp.inf)),
        lambda x: jax.nn.softmax(jnp.where(x > 0, x, -jnp.inf)),
        lambda x: jax.nn.logsumexp(jnp.where(x > 0, x, -jnp.inf)),
        lambda x: jnp.nanmean(jnp.log(x)),
        lambda x: 1 / jnp.exp(1000 * x[0]),
        lambda x: (x > jnp.log(x)).astype(jnp.int32),
        lambda x: jax.lax.scan(lambda c, v: (c, jnp.where(v > 0, jnp.log(v), c)), 0.0, x),
    ],
)
def test_nothing_is_blamed_where_nothing_bad_comes_out(function: Callable[..., Any]) -> None:
    assert find_culprit(function, VALUES) is None


def test_a_masked_nan_is_not_blamed_for_another() -> None:
    def function(x: jax.Array) -> jax.Array:
        masked = jnp.sum(jnp.where(x > 0, jnp.log(x), 0.0))
        return masked + jnp.sum(jnp.sqrt(x - 1.5))  # planted: not masked

    culprit = blamed(function, VALUES)
    assert culprit.operation == "sqrt" and culprit.source.startswith(line("not masked"))


def test_only_selected_elements_are_followed() -> None:
    """Both branches hold a NaN at some element, and only one of them is taken there."""

    def function(x: jax.Array) -> jax.Array:
        return jnp.where(x > 1.5, jnp.sqrt(3 - x), jnp.log(x + 2))

    assert blamed(function, jnp.array([1.0, -3.0])).operation == "log"
    assert blamed(function, jnp.array([1.0, 2.0, 4.0])).operation == "sqrt"
    # log is NaN at element 0 and sqrt at element 2, each where the other is taken, until the last element.
    apart = lambda x: jnp.where(jnp.array([True, True, False, False]), jnp.sqrt(x + 3.5), jnp.log(x))
    assert find_culprit(apart, jnp.array([-1.0, 1.0, 1.0, 2.0])) is None
    assert blamed(apart, jnp.array([-1.0, -4.0, 1.0, 2.0])).operation == "sqrt"


def test_the_gradient_of_a_masked_root_is_blamed_where_it_is_made() -> None:
    """The classic: 0 x inf in the backward pass of where(x > 0, sqrt(x), 0)."""

    def function(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(x > 0, jnp.sqrt(x), 0.0))  # planted: root

    culprit = blamed(jax.grad(function), jnp.array([1.0, 0.0]))
    assert culprit.operation == "div" and culprit.value == "inf"
    assert culprit.source.startswith(line("root"))


def test_rows_are_told_apart_in_reductions_and_products() -> None:
    """A NaN in another row of what is reduced, or a later one of what is accumulated, is not the cause."""

    def rows(x: jax.Array) -> jax.Array:
        table = jnp.stack([jnp.log(x), jnp.sqrt(x - 3.5), x])
        return jnp.sum(table, axis=1)

    assert blamed(lambda x: rows(x)[0], VALUES).operation == "log"
    assert blamed(lambda x: rows(x)[1], VALUES).operation == "sqrt"
    assert find_culprit(lambda x: rows(x)[2], VALUES) is None
    assert blamed(lambda x: (rows(x)[:, None] @ jnp.ones((1, 2)))[1], VALUES).operation == "sqrt"
    overflow = lambda x: ((1e30 * jnp.log(x))[:, None] @ jnp.full((1, 2), 1e30))[3]
    assert blamed(overflow, VALUES).operation == "dot_general"
    cumulative = lambda x: jnp.cumsum(jnp.concatenate([jnp.sqrt(x[:2] - 1.5), jnp.log(x)]))
    assert blamed(cumulative, VALUES).operation == "sqrt"
    assert blamed(lambda x: jnp.cumsum(jnp.concatenate([x, jnp.log(x)])), VALUES).operation == "log"


def test_one_of_many_is_found_in_the_row_that_counts() -> None:
    """Ten NaN come before it, and five after."""

    def function(x: jax.Array) -> jax.Array:
        table = jnp.where(jnp.arange(20).reshape(4, 5) == 14, jnp.log(x), jnp.sqrt(x))
        table = table.at[2, :4].set(1.0)
        return jnp.sum(table, axis=1)[2]

    culprit = blamed(function, jnp.full((4, 5), -1.0))
    assert culprit.operation == "log" and culprit.operands == ("float32[4,5] -1 at [2, 4]",)


@pytest.mark.parametrize(
    "moved",
    [
        lambda y: y[::-1].reshape(2, 2).T,
        lambda y: jnp.pad(y, 2)[1:-1],
        jnp.zeros(6).at[jnp.array([4, 1, 0, 2])].set,
        jnp.zeros(2).at[jnp.array([1, 1, 0, 0])].add,
        lambda y: jax.lax.dynamic_update_slice(jnp.zeros(8), y, (3,)),
        jnp.sort,
        lambda y: jnp.concatenate([jnp.ones(3), y, jnp.ones(2)]),
        lambda y: jnp.take(y, jnp.array([3, 2])),
        lambda y: jnp.broadcast_to(y[:, None], (4, 3))[:, 1],
        lambda y: jnp.convolve(y, jnp.array([1.0, 2.0])),
        jnp.max,
        jnp.linalg.norm,
    ],
)
def test_a_number_is_followed_wherever_it_is_moved(moved: Callable[..., Any]) -> None:
    def function(x: jax.Array) -> jax.Array:
        return moved(jnp.where(x < 0, jnp.log(x), x))

    culprit = blamed(function, VALUES)
    assert culprit.operation == "log" and culprit.operands == ("float32[4] -3 at [2]",)


class TestLoops:
    def test_scan_names_the_step_that_made_what_is_carried(self) -> None:
        def body(carry: jax.Array, time: jax.Array) -> tuple[jax.Array, jax.Array]:
            bad = jnp.log(-carry)  # planted: scan
            carry = jnp.where(time == 3, bad, carry + 1)
            return carry, time

        culprit = blamed(lambda x: jax.lax.scan(body, x, jnp.arange(8))[0], jnp.float32(1.0))
        assert culprit.operation == "log" and culprit.path == ("scan step 3",)
        assert culprit.source.startswith(line("scan")) and culprit.operands == ("float32[] -4",)

    @pytest.mark.parametrize("reverse", [False, True])
    def test_scan_names_the_step_of_a_row(self, reverse: bool) -> None:
        def function(x: jax.Array) -> jax.Array:
            return jax.lax.scan(lambda carry, row: (carry, jnp.sqrt(row)), 0.0, x, reverse=reverse)[1]

        (step,) = blamed(function, VALUES).path
        assert step == ("scan step 1 (from the end)" if reverse else "scan step 2")

    @pytest.mark.parametrize("reverse", [False, True])
    def test_out_of_a_scan_by_its_rows_constants_and_start(self, reverse: bool) -> None:
        def function(rows: jax.Array, constant: jax.Array, start: jax.Array) -> jax.Array:
            body = lambda carry, row: (carry + row * constant, None)
            return jax.lax.scan(body, start, rows, reverse=reverse)[0]

        zero = jnp.zeros(())
        assert blamed(lambda x: function(jnp.log(x), zero, zero), VALUES).operands == ("float32[4] -3 at [2]",)
        assert blamed(lambda x: function(x, jnp.sqrt(x[2]), zero), VALUES).operation == "sqrt"
        assert blamed(lambda x: function(x, zero, jnp.sqrt(x[2])), VALUES).operation == "sqrt"

    def test_a_loop_without_steps_returns_what_it_was_given(self) -> None:
        scanned = lambda x: jax.lax.scan(lambda c, _: (c + 1, c), jnp.log(x), None, length=0)
        looped = lambda x: jax.lax.while_loop(lambda c: c[0] < 0, lambda c: (c[0] + 1, c[1] * 2), (0, jnp.log(x)))
        for function in (scanned, looped):
            culprit = blamed(function, VALUES)
            assert culprit.operation == "log" and culprit.path == ()

    def test_while_names_the_step(self) -> None:
        def body(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            count, value = carry
            return count + 1, jnp.log(value)  # planted: while

        looped = lambda x: jax.lax.while_loop(lambda carry: carry[0] < 9, body, (0, x))[1]
        culprit = blamed(looped, jnp.float32(5.0))  # 5, 1.61, 0.476, -0.743, nan
        assert culprit.path == ("while step 3",) and culprit.source.startswith(line("while"))

    def test_a_mapped_while_loop_goes_on_for_some_copies_only(self) -> None:
        """Copies that have ended keep their value, whatever the body makes of it further on."""

        def one(x: jax.Array) -> jax.Array:
            step = lambda carry: (carry[0] + 1, jnp.sqrt(carry[1] - 1))
            return jax.lax.while_loop(lambda carry: carry[0] < x, step, (0.0, x))[1]

        # 1 -> 0; 2 -> 1 -> 0: the body goes on with both, and sqrt(0 - 1) of the first copy is never kept.
        assert find_culprit(jax.vmap(one), jnp.array([1.0, 2.0])) is None
        culprit = blamed(jax.vmap(one), jnp.array([1.0, 2.0, 3.0]))  # 3 -> 1.41 -> 0.64 -> nan
        assert culprit.path == ("while step 2",)
        assert culprit.operands[0].startswith("float32[3] -0.35") and culprit.operands[0].endswith("at [2]")
        # Made before the copy ended, and kept while others go on.
        culprit = blamed(lambda x: jax.vmap(one)(x)[0], jnp.array([0.5, 2.0, 3.0]))
        assert culprit.path == ("while step 0",)

    def test_what_a_copy_made_in_its_last_step_is_not_blamed_on_later_ones(self) -> None:
        def one(limit: jax.Array) -> jax.Array:
            step = lambda carry: (carry[0] + 1, jnp.log(1.5 - carry[0]))
            return jax.lax.while_loop(lambda carry: carry[0] < limit, step, (0.0, 0.0))[1]

        assert blamed(jax.vmap(one), jnp.array([1.0, 3.0, 6.0])).path == ("while step 2",)
        assert blamed(lambda x: jax.vmap(one)(x)[2], jnp.array([1.0, 3.0, 6.0])).path == ("while step 5",)

    def test_nested_loops_are_named_outermost_first(self) -> None:
        def inner(carry: jax.Array, scale: jax.Array) -> tuple[jax.Array, None]:
            return carry + jnp.sqrt(7.0 - carry - scale), None

        def outer(carry: jax.Array) -> jax.Array:
            return jax.jit(lambda c: jax.lax.scan(inner, c, jnp.arange(3.0))[0])(carry)

        looped = lambda x: jax.lax.fori_loop(0, 4, lambda _, carry: outer(carry), x)
        culprit = blamed(looped, jnp.float32(0.0))
        # 0, 2.65, 4.48, 5.20; 5.20, 6.54, sqrt(7 - 6.54 - 1).
        assert culprit.operation == "sqrt" and culprit.path == ("scan step 1", "scan step 1")
        assert blamed(jax.jit(looped), jnp.float32(0.0)) == culprit

    def test_evaluating_loops_in_python_agrees_with_compiling_them(self) -> None:
        """Every output is made to count, so that the values themselves are seen."""

        def function(x: jax.Array, key: jax.Array) -> Any:
            keys = jax.random.split(key, 4)
            forward = jax.lax.scan(lambda c, r: (c * r + 1, (c, c > 2)), x[0], x)
            backward = jax.lax.scan(lambda c, k: (c + jax.random.normal(k), c), x[0], keys, reverse=True)
            looped = jax.lax.while_loop(lambda c: c[0] < 5, lambda c: (c[0] + 1, c[1] / 2), (0, x))
            mapped = jax.vmap(lambda v: jax.lax.while_loop(lambda c: c < 10, lambda c: 2 * c, v))(jnp.abs(x))
            chosen = jax.lax.cond(x[0] > 0, lambda v: v + 1, lambda v: v - 1, x)
            return forward, backward, looped, mapped, chosen

        seen: dict[str, Any] = {}

        def watch(outputs: Any) -> Any:
            seen["outputs"] = outputs
            return not_finite(outputs)

        key = jax.random.key(0)
        assert find_culprit(function, VALUES, key, bad=watch) is None
        jax.tree.map(
            lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-6),
            seen["outputs"],
            jax.jit(function)(VALUES, key),
        )


class TestCalls:
    def test_through_every_kind_of_call(self) -> None:
        @jax.custom_jvp
        def custom_jvp(x: jax.Array) -> jax.Array:
            return jnp.log(x)  # planted: custom_jvp

        custom_jvp.defjvp(lambda primals, tangents: (custom_jvp(*primals), tangents[0] / primals[0]))  # planted: rule

        @jax.custom_vjp
        def custom_vjp(x: jax.Array) -> jax.Array:
            return jnp.log(x)  # planted: custom_vjp

        custom_vjp.defvjp(lambda x: (custom_vjp(x), x), lambda x, g: (g / x,))

        @jax.checkpoint
        def checkpointed(x: jax.Array) -> jax.Array:
            return jnp.log(x)  # planted: checkpoint

        @jax.jit
        def jitted(x: jax.Array) -> jax.Array:
            return jnp.log(x)  # planted: jit

        calls = {"custom_jvp": custom_jvp, "custom_vjp": custom_vjp, "checkpoint": checkpointed, "jit": jitted}
        for name, call in calls.items():
            for function in (call, jax.vmap(call), jax.jit(lambda x, call=call: 2 * call(x))):
                culprit = blamed(function, VALUES)
                assert culprit.operation == "log" and culprit.path == (), name
                assert culprit.source.startswith(line(name)), name
        culprit = blamed(jax.grad(lambda x: jnp.sum(custom_jvp(x))), jnp.zeros(2))
        assert culprit.operation == "div" and culprit.source.startswith(line("rule"))

    def test_cond_names_the_branch(self) -> None:
        function = lambda x: jax.lax.switch(jnp.int32(7), [lambda v: v, jnp.exp, lambda v: jnp.log(-v)], x)
        assert blamed(function, jnp.float32(1.0)).path == ("cond branch 2",)

    def test_out_of_a_branch_by_its_operand(self) -> None:
        function = lambda x: jax.lax.cond(x[0] > 0, lambda a, b: b + a, lambda a, b: b, x[0], jnp.log(x))
        culprit = blamed(lambda x: function(x)[2], VALUES)
        assert culprit.operation == "log" and culprit.path == ()

    def test_a_function_of_jaxs_own_is_named_by_its_caller(self) -> None:
        """JAX traces its own functions once for all their callers: the second is named all the same."""

        def function(x: jax.Array) -> jax.Array:
            first = jnp.linalg.norm(x)
            second = jnp.linalg.norm(x * 1e30)  # planted: second norm
            return first + second

        culprit = blamed(function, VALUES)
        assert culprit.operation == "mul" and culprit.source.startswith(line("second norm"))

    def test_installed_code_is_named_with_its_caller(self) -> None:
        layer = nn.Dense(2, kernel_init=nn.initializers.ones)
        parameters = layer.init(jax.random.PRNGKey(0), VALUES)

        def function(x: jax.Array) -> jax.Array:
            return layer.apply(parameters, 8e37 * jnp.abs(x))  # planted: layer

        culprit = blamed(function, VALUES)
        assert culprit.operation == "dot_general" and "flax" in culprit.source
        assert culprit.called_from.startswith(line("layer")) and f"called from {line('layer')}" in str(culprit)


class TestGiven:
    def test_an_input_is_named_by_its_path_and_element(self) -> None:
        weights = {"layers": [jnp.ones((2, 2)), jnp.array([[1.0, 2.0], [jnp.nan, 1.0]])]}

        def function(x: jax.Array, parameters: Any) -> jax.Array:
            return jnp.tanh(x @ parameters["layers"][0]) @ parameters["layers"][1]

        culprit = blamed(function, jnp.ones(2), weights)
        assert culprit.operation == "input" and culprit.value == "nan"
        assert culprit.operands == ("parameters['layers'][1][1, 0]",)
        assert str(culprit) == "input parameters['layers'][1][1, 0] was nan to begin with."

    def test_a_constant_is_named_where_it_is_read(self) -> None:
        table = jnp.array([1.0, jnp.nan, 2.0, 3.0])

        def function(x: jax.Array) -> jax.Array:
            return x * table  # planted: table

        culprit = blamed(function, VALUES)
        assert culprit.operation == "constant" and culprit.source.startswith(line("table"))
        assert find_culprit(lambda x: (x * table)[2:], VALUES) is None

    def test_an_infinity_that_was_given_counts_where_it_comes_out(self) -> None:
        def least(x: jax.Array) -> jax.Array:
            return jnp.min(jnp.where(x > 5, x, jnp.inf))  # planted: least

        culprit = blamed(least, VALUES)
        assert (culprit.operation, culprit.value) == ("constant", "inf")
        assert culprit.source.startswith(line("least"))
        assert find_culprit(least, 3 * VALUES) is None

    def test_what_makes_nan_of_a_given_infinity_is_blamed(self) -> None:
        def weighted(x: jax.Array, distance: jax.Array) -> jax.Array:
            return jnp.exp(-distance) + 0 * distance  # planted: weighted

        culprit = blamed(weighted, VALUES, jnp.array([1.0, jnp.inf, 1.0, 1.0]))
        assert (culprit.operation, culprit.value) == ("mul", "nan")
        assert culprit.source.startswith(line("weighted")) and culprit.given_by == "input distance[1]"

    def test_a_nan_that_was_made_is_blamed_rather_than_an_infinity_beside_it(self) -> None:
        function = lambda x, distance: distance + jnp.log(x)
        assert blamed(function, VALUES, jnp.full(4, jnp.inf), bad=jnp.isnan).operation == "log"

    def test_what_was_made_is_blamed_rather_than_the_same_number_given(self) -> None:
        assert blamed(lambda x: jnp.maximum(-jnp.inf, jnp.log(x)), jnp.zeros(())).operation == "log"

    def test_an_infinity_that_was_made_is_blamed_rather_than_the_nan(self) -> None:
        def function(x: jax.Array) -> jax.Array:
            huge = jnp.exp(1000 * x)  # planted: huge
            return huge - huge

        assert blamed(function, VALUES).source.startswith(line("huge"))


class TestBad:
    def test_only_what_counts_is_followed(self) -> None:
        def function(x: jax.Array) -> dict[str, jax.Array]:
            return {"a": jnp.log(x), "b": jnp.sqrt(x)}

        only_b = lambda outputs: {"a": jnp.zeros(4, bool), "b": not_finite(outputs["b"])}
        assert blamed(function, VALUES, bad=only_b).operation == "sqrt"
        nothing = lambda outputs: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), outputs)
        assert find_culprit(function, VALUES, bad=nothing) is None

    def test_infinity_may_be_allowed(self) -> None:
        nan_only = lambda outputs: jax.tree.map(jnp.isnan, outputs)
        function = lambda x: (jnp.exp(1000 * x), jnp.log(x))
        assert blamed(function, VALUES, bad=nan_only).operation == "log"

    def test_finite_numbers_never_count(self) -> None:
        everything = lambda outputs: jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), outputs)
        assert find_culprit(lambda x: (x, x > 0, jnp.int32(1)), VALUES, bad=everything) is None


class TestGuarded:
    def test_what_a_guard_turned_away_is_found(self) -> None:
        def function(x: jax.Array) -> jax.Array:
            roots = jnp.sqrt(x)  # planted: guarded
            return jnp.where(jnp.isfinite(roots), roots, 0.0)

        assert find_culprit(function, VALUES) is None
        culprit = find_guarded(function, VALUES, within=HERE.parent)
        assert culprit is not None and culprit.operation == "sqrt"
        assert culprit.source.startswith(line("guarded"))
        assert find_guarded(function, jnp.abs(VALUES), within=HERE.parent) is None

    def test_guards_elsewhere_do_not_count(self) -> None:
        function = lambda x: jnp.where(jnp.isfinite(jnp.log(x)), x, 0.0)
        assert find_guarded(function, VALUES) is None
        # logsumexp asks whether its largest number is finite, in JAX's own files.
        inside_jax = lambda x: jax.nn.logsumexp(jnp.where(x > 9, x, -jnp.inf) + x)
        assert find_guarded(inside_jax, VALUES, within=HERE.parents[2] / "trpo_brax") is None

    def test_in_a_loop_the_first_step_counts_and_what_was_carried_to_it(self) -> None:
        def body(carry: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], None]:
            left, value = carry
            value = jnp.log(left)
            seen = jax.jit(lambda old: jnp.where(jnp.isnan(old), 0.0, old))(carry[1])
            return (left - 1, value), seen

        function = lambda x: jax.lax.scan(body, (x, x), None, length=6)[0][0]
        assert find_culprit(function, jnp.float32(2.5)) is None
        culprit = find_guarded(function, jnp.float32(2.5), within=HERE.parent)
        # log(2.5 - 3) at step 3, met by the guard at step 4.
        assert culprit is not None and culprit.path == ("scan step 3",) and culprit.operands == ("float32[] -0.5",)

    def test_a_test_for_nan_lets_infinity_pass(self) -> None:
        function = lambda x: jnp.where(jnp.isnan(1 / (x - 1)), 0.0, x)
        assert find_guarded(function, VALUES, within=HERE.parent) is None
        assert find_guarded(lambda x: jnp.isfinite(1 / (x - 1)), VALUES, within=HERE.parent) is not None

    def test_an_input_that_a_guard_meets_is_named(self) -> None:
        tested = lambda x: jnp.isfinite(x).all()
        culprit = find_guarded(tested, jnp.array([1.0, jnp.inf]), within=HERE.parent)
        assert culprit is not None and (culprit.operation, culprit.operands) == ("input", ("x[1]",))
