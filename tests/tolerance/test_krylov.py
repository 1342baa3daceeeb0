"""What a few products with a Jacobian tell of its spectral radius."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odeopt.testing.problems import Quadratic
from odeopt.tolerance.krylov import Krylov


def symmetric(seed, size):
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.randn(size, generator=generator).tolist()
    return Quadratic.from_spectrum(spectrum, seed).matrix, max(map(abs, spectrum))


def estimates(matrix, y, count, symmetric=True):
    krylov = Krylov(lambda y: y @ matrix.T, y, y @ matrix.T, symmetric)
    return torch.stack([krylov.extend() for _ in range(count)])


@given(seed=st.integers(0, 10**6), size=st.integers(1, 12))
def test_it_is_a_lower_bound_that_grows_to_the_spectral_radius(seed, size):
    matrix, radius = symmetric(seed, size)
    y = torch.randn(size, generator=torch.Generator().manual_seed(seed + 1))
    found = estimates(matrix, y, size + 2)
    assert (found[1:] >= found[:-1] * (1 - 1e-5)).all()
    assert (found <= radius * (1 + 1e-5)).all()
    assert found[-1].item() == pytest.approx(radius, rel=1e-4)


@given(seed=st.integers(0, 10**6))
def test_it_is_nearer_than_as_many_power_iterations(seed):
    matrix, _ = symmetric(seed, 30)
    y = torch.randn(30, generator=torch.Generator().manual_seed(seed + 1))
    image = matrix @ y
    draw = torch.randn(30, generator=torch.Generator().manual_seed(0))
    vector = image / image.norm() + 0.5 * draw / draw.norm()
    for found in estimates(matrix, y, 6):
        moved = matrix @ (vector / vector.norm())
        assert found >= moved.norm() * (1 - 1e-5)
        vector = moved


@given(seed=st.integers(0, 10**6), size=st.integers(2, 8))
def test_without_symmetry_it_ends_with_the_largest_eigenvalue(seed, size):
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    radius = torch.linalg.eigvals(matrix).abs().max().item()
    found = estimates(matrix, torch.ones(size), size, symmetric=False)
    assert found[-1].item() == pytest.approx(radius, rel=1e-3)


def test_each_task_is_looked_at_by_itself(device):
    first, second = (symmetric(seed, 6)[0].to(device) for seed in (1, 2))
    y = torch.randn(2, 6).to(device)

    def velocity(y):
        return torch.stack([y[0] @ first, 3 * y[1] @ second])

    krylov = Krylov(velocity, y, velocity(y), symmetric=True)
    together = torch.stack([krylov.extend() for _ in range(4)])
    assert together.shape == (4, 2)
    torch.testing.assert_close(together[:, 0], estimates(first, y[0], 4), rtol=1e-5, atol=0)
    torch.testing.assert_close(together[:, 1], 3 * estimates(second, y[1], 4), rtol=1e-5, atol=0)


def test_rounding_is_not_taken_for_another_direction():
    matrix = torch.diag(torch.tensor([2.0, 2.0, 2.0, 2.0]))
    assert estimates(matrix, torch.ones(4), 8).tolist() == pytest.approx([2.0] * 8, rel=1e-5)


def test_in_float32_it_is_as_near_as_differences_allow():
    matrix, radius = symmetric(3, 8)
    found = estimates(matrix.float(), torch.ones(8, dtype=torch.float32), 8)
    assert found.dtype == torch.float32
    assert found[-1].item() == pytest.approx(radius, rel=0.02)


def test_where_nothing_moves_and_where_nothing_is_finite_it_is_zero():
    assert estimates(torch.zeros(3, 3), torch.ones(3), 3).tolist() == [0.0] * 3
    assert estimates(torch.full((3, 3), torch.nan), torch.ones(3), 2).tolist() == [0.0] * 2
