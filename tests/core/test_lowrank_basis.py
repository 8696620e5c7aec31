"""One basis for many deltas: exact coordinates, by either route and along either axis."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pfl_platform.errors import UserError
from pfl_platform.lowrank import basis as module
from pfl_platform.lowrank.basis import Axis, CommonBasis, Route, common_basis
from pfl_platform.lowrank.decompose import svd
from pfl_platform.lowrank.deltas import Delta, mean, weighted_sum
from pfl_platform.lowrank.gauge import signs
from pfl_platform.rng import torch_rng

AXES: list[Axis] = ["output", "input"]
ROUTES: list[Route] = ["stacked", "gram"]


def factored(
    seed: int, d_out: int, d_in: int, rank: int, dtype: torch.dtype = torch.float64, scale: float = 1.0
) -> Delta:
    rng = torch_rng("factored", seed)
    up = torch.randn(d_out, rank, generator=rng, dtype=torch.float64)
    down = torch.randn(rank, d_in, generator=rng, dtype=torch.float64)
    return Delta(up.to(dtype), down.to(dtype), scale, f"client-{seed}")


def truth(delta: Delta) -> Tensor:
    return delta.scale * delta.up.double() @ delta.down.double()


def joined(deltas: list[Delta], axis: Axis) -> Tensor:
    """The matrix whose SVD is meant: dense deltas side by side, or (transposed) below each other."""
    dense = [truth(delta) for delta in deltas]
    return torch.cat(dense, dim=1) if axis == "output" else torch.cat(dense, dim=0).T


def blocks_of(found: CommonBasis, deltas: list[Delta]) -> list[Tensor]:
    return [found.coordinates(k).dense(torch.float64) for k in range(len(deltas))]


@st.composite
def several(draw: st.DrawFn) -> list[Delta]:
    """One to four deltas, with ranks and scales of their own; the ranks may add up to more than both sides."""
    d_out, d_in, seed = draw(st.integers(1, 7)), draw(st.integers(1, 7)), draw(st.integers(0, 10**6))
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    ranks, scales = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)), st.sampled_from([2.0, -0.5, 0.03])
    return [factored(seed + k, d_out, d_in, rank, dtype, draw(scales)) for k, rank in enumerate(ranks)]


@given(several(), st.sampled_from(AXES), st.sampled_from(ROUTES))
def test_basis_is_that_of_the_dense_deltas(deltas: list[Delta], axis: Axis, route: Route) -> None:
    found, whole = common_basis(deltas, axis, route=route), joined(deltas, axis)
    s = torch.linalg.svdvals(whole)
    largest, count = float(s[0]), found.rank
    # The Gram route may lose what is small; nothing else is lost.
    lost = 1e-6 * largest
    assert float(s[count:].max() if count < len(s) else 0) <= lost
    assert float((found.values - s[:count]).abs().max()) <= 1e-9 * largest
    assert torch.equal(found.values, found.values.sort(descending=True).values)
    identity = torch.eye(count, dtype=torch.float64)
    torch.testing.assert_close(found.basis.T @ found.basis, identity, atol=1e-12, rtol=0)
    assert torch.equal(signs(found.basis.T), torch.ones(count, dtype=torch.float64))
    rows = torch.cat(blocks_of(found, deltas), dim=1)
    # As orthonormal as the smallest value that is divided by allows.
    weakest = float(found.values[-1] / largest)
    torch.testing.assert_close(rows @ rows.T, identity, atol=1e-13 / weakest**2, rtol=0)
    for k, delta in enumerate(deltas):
        dense, near = truth(delta), 1e-9 * largest + lost * (count < len(s))
        assert found.coordinates(k).dtype == delta.dtype
        for weighted in (False, True):
            coordinates = found.coordinates(k, weighted=weighted)
            for form in (coordinates, coordinates.dense(torch.float64)):
                back = found.lift(form, weighted=weighted)
                assert back.shape == delta.shape
                assert float((back.dense(torch.float64) - dense).abs().max()) <= near


@given(several(), st.sampled_from(AXES))
def test_linear_functions_of_coordinates_are_those_of_deltas(deltas: list[Delta], axis: Axis) -> None:
    found, expected = common_basis(deltas, axis), mean(deltas).dense(torch.float64)
    near = (1e-9 if deltas[0].dtype == torch.float64 else 1e-6) * float(joined(deltas, axis).norm())
    for weighted in (False, True):
        coordinates = mean(found.coordinates(k, weighted=weighted) for k in range(len(deltas)))
        lifted = found.lift(coordinates, weighted=weighted).dense(torch.float64)
        assert float((lifted - expected).abs().max()) <= near


@given(several(), st.sampled_from(AXES))
def test_the_routes_agree(deltas: list[Delta], axis: Axis) -> None:
    one, other = (common_basis(deltas, axis, route=route) for route in ROUTES)
    count, largest = min(one.rank, other.rank), float(one.values[0])
    assert float((one.values[:count] - other.values[:count]).abs().max()) <= 1e-9 * largest
    # The spaces are the same where the spectrum has a gap.
    gaps = -one.values.diff(append=torch.zeros(1)) / largest
    for k in range(count):
        if float(gaps[k]) > 1e-2 and (k == 0 or float(gaps[k - 1]) > 1e-2):
            torch.testing.assert_close(one.basis[:, k], other.basis[:, k], atol=1e-6, rtol=0)


def test_basis_by_hand() -> None:
    # Both deltas write to output (3, 4) / 5 only: [D_1, D_2] = (3, 4)^T (2, 0, 0, 0, 0, 2 * 0.5); S = 5 sqrt(5).
    up = torch.tensor([[3.0], [4.0]])
    one, two = Delta(up, torch.tensor([[2.0, 0.0, 0.0]])), Delta(up, torch.tensor([[0.0, 0.0, 2.0]]), scale=0.5)
    found = common_basis([one, two])
    torch.testing.assert_close(found.basis, torch.tensor([[0.6], [0.8]]).double())
    torch.testing.assert_close(found.values, torch.tensor([125.0]).double().sqrt())
    root = 5**-0.5
    torch.testing.assert_close(found.coordinates(0).dense(), torch.tensor([[2 * root, 0, 0]]))
    torch.testing.assert_close(found.coordinates(1).dense(), torch.tensor([[0, 0, root]]))
    torch.testing.assert_close(found.coordinates(1, weighted=True).dense(), torch.tensor([[0, 0, 5.0]]))
    # Along the inputs: two directions, (1, 0, 0) with value 10 and (0, 0, 1) with 5.
    other = common_basis([one, two], "input")
    torch.testing.assert_close(other.values, torch.tensor([10.0, 5.0]).double())
    torch.testing.assert_close(other.basis.T, torch.tensor([[1.0, 0, 0], [0, 0, 1]]).double())
    torch.testing.assert_close(other.coordinates(0).dense(), torch.tensor([[0.6, 0.8], [0, 0]]))


def test_one_client_has_its_own_svd() -> None:
    delta = factored(0, 6, 5, 3, scale=2.0)
    found, own = common_basis([delta]), svd(delta)
    torch.testing.assert_close(found.values, own.s)
    torch.testing.assert_close((found.basis.T @ own.u).abs(), torch.eye(3, dtype=torch.float64), atol=1e-9, rtol=0)
    rows = found.coordinates(0).dense()
    torch.testing.assert_close((rows @ own.vt.T).abs(), torch.eye(3, dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equal_clients_share_their_directions(route: Route, dtype: torch.dtype) -> None:
    delta = factored(0, 20, 30, 4, dtype)
    found = common_basis([delta] * 5, route=route)
    assert found.rank == 4
    torch.testing.assert_close(found.values, svd(delta).s * 5**0.5)
    for k in range(5):
        assert float((found.lift(found.coordinates(k)).dense().double() - truth(delta)).abs().max()) < 1e-5


@pytest.mark.parametrize("route", ROUTES)
def test_what_cancels_within_a_client_is_no_direction(route: Route) -> None:
    delta = factored(0, 20, 30, 4)
    nothing = weighted_sum([delta] * 3, [0.1, 0.2, -0.3])
    assert common_basis([nothing, nothing], route=route).rank == 0
    assert common_basis([nothing, delta], route=route).rank == 4


@pytest.mark.parametrize("route", ROUTES)
def test_repeated_values_stay_exact(route: Route) -> None:
    """Which basis of the repeated direction is taken is open; the deltas are not."""
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch_rng("turn"), dtype=torch.float64)).Q
    deltas = [Delta(turn[:, k : k + 2], 3 * turn[k : k + 2]) for k in (0, 2, 4)]
    found = common_basis(deltas, route=route)
    torch.testing.assert_close(found.values, torch.full((6,), 3.0, dtype=torch.float64))
    for k, delta in enumerate(deltas):
        torch.testing.assert_close(found.lift(found.coordinates(k)).dense(), truth(delta), atol=1e-12, rtol=0)


@pytest.mark.parametrize("route", ROUTES)
def test_tiny_and_idle_clients(route: Route) -> None:
    # 1e-9 of a client's size is an early round, not noise; a client of zeros has coordinates of zeros.
    tiny = factored(1, 5, 6, 2, torch.float32, scale=1e-9)
    idle = Delta(torch.zeros(5, 2), torch.ones(2, 6))
    found = common_basis([idle, tiny], route=route)
    assert found.rank == 2
    assert not found.coordinates(0).dense().any()
    nothing = common_basis([idle, idle], route=route)
    assert nothing.rank == 0
    assert nothing.coordinates(1).shape == (0, 6)
    assert torch.equal(nothing.lift(nothing.coordinates(1)).dense(), torch.zeros(5, 6))


def test_the_gram_route_loses_what_its_squares_cannot_hold() -> None:
    deltas = [
        Delta(torch.eye(4).double()[:, [k]], torch.eye(4).double()[[k]], 10.0**power) for k, power in ((0, 0), (1, -9))
    ]
    assert common_basis(deltas, route="stacked").rank == 2
    assert common_basis(deltas, route="gram").rank == 1
    # At 1e-6 it holds the value to 1e-4 of itself, which is why shorter floats may take it.
    wide = [deltas[0], Delta(deltas[1].up, deltas[1].down, 1e-6)]
    assert common_basis(wide, route="gram").values[1].item() == pytest.approx(1e-6, rel=1e-3)


@pytest.mark.parametrize(
    ("clients", "dtype", "expected"),
    [
        (2, torch.float32, "stacked"),
        (3, torch.float32, "gram"),
        (3, torch.bfloat16, "gram"),
        (3, torch.float64, "stacked"),
    ],
)
def test_the_route_goes_by_cost(
    monkeypatch: pytest.MonkeyPatch, clients: int, dtype: torch.dtype, expected: str
) -> None:
    taken = []
    for route in ROUTES:
        name = f"_from_{'stack' if route == 'stacked' else 'gram'}"
        inner = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda deltas, inner=inner, route=route: (taken.append(route), inner(deltas))[1]
        )
    deltas = [factored(k, 16, 40, 8, dtype) for k in range(clients)]  # ranks of 16 or 24 in 16 dimensions
    common_basis(deltas)
    assert taken == [expected]
    common_basis(deltas, "input")  # in 40
    common_basis(deltas, tol=1e-9)  # finer than squares can tell
    assert taken == [expected, "stacked", "stacked"]


def test_many_clients_of_large_rank() -> None:
    deltas = [factored(k, 24, 30, 8, torch.float32, 0.5 + k) for k in range(13)]  # 104 directions in 24
    found = common_basis(deltas)
    assert found.rank == 24
    for k in (0, 12):
        back = found.lift(found.coordinates(k)).dense().double()
        assert float((back - truth(deltas[k])).norm() / truth(deltas[k]).norm()) < 1e-5
    total = found.lift(weighted_sum(found.coordinates(k) for k in range(13)))
    torch.testing.assert_close(total.dense(), weighted_sum(deltas).dense(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("route", ROUTES)
def test_order_of_clients_and_threads_change_rounding_only(route: Route) -> None:
    deltas, before = [factored(k, 40, 30, 3, scale=1.0 + k) for k in range(4)], torch.get_num_threads()
    found, turned = common_basis(deltas, route=route), common_basis(deltas[::-1], route=route)
    try:
        torch.set_num_threads(2)
        threaded = common_basis(deltas, route=route)
    finally:
        torch.set_num_threads(before)
    for other, order in ((turned, (3, 2, 1, 0)), (threaded, (0, 1, 2, 3))):
        torch.testing.assert_close(other.basis, found.basis, atol=1e-7, rtol=0)
        torch.testing.assert_close(other.values, found.values, rtol=1e-9, atol=0)
        for k, place in enumerate(order):
            one, two = found.coordinates(k).dense(), other.coordinates(place).dense()
            torch.testing.assert_close(one, two, atol=1e-7, rtol=0)


class Largest(TorchDispatchMode):
    """The size of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else [out]:
            self.numel = max(self.numel, one.numel() if isinstance(one, Tensor) else 0)
        return out


def test_no_dense_delta_is_made() -> None:
    deltas = [factored(k, 300, 200, 2) for k in range(5)]
    with Largest() as largest:
        found = common_basis(deltas)
        found.lift(found.coordinates(3))
    assert 3000 <= largest.numel <= 300 * 10 * 2


def test_what_is_not_known_is_refused() -> None:
    delta = factored(0, 3, 4, 1)
    with pytest.raises(UserError, match="'outputs'.* Did you mean 'output'"):
        common_basis([delta], "outputs")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="'stack'.* Did you mean 'stacked'"):
        common_basis([delta], route="stack")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="'client-1' is 3 x 5 and that of 'client-0' 3 x 4"):
        common_basis([delta, factored(1, 3, 5, 1)])
    with pytest.raises(UserError, match="There is no delta"):
        common_basis([])
