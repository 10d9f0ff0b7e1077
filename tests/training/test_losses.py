import pytest
import torch
from torch_geometric.data import Batch, Data

from pyg_equivariant.training import (
    AbsoluteError,
    EnergyForceLoss,
    HuberError,
    PerAtomTerm,
    SquaredError,
    Term,
    VectorError,
    WeightedLoss,
)
from pyg_equivariant.training.losses import Error
from pyg_equivariant.typing import Prediction


def molecules(energy: tuple[float, float] = (-1000.0, -2000.0)) -> Batch:
    """Two graphs of 2 and 3 atoms."""
    return Batch.from_data_list(
        [
            Data(
                z=torch.ones(n, dtype=torch.long),
                pos=torch.zeros(n, 3),
                energy=torch.tensor([e], dtype=torch.float64),
                forces=torch.zeros(n, 3),
                idx=torch.tensor([70 + n]),
            )
            for n, e in zip((2, 3), energy, strict=True)
        ]
    )


def prediction(energy: tuple[float, float] = (-999.0, -1997.0), forces: torch.Tensor | None = None) -> Prediction:
    return Prediction(
        energy=torch.tensor(energy, dtype=torch.float64), forces=torch.full((5, 3), 2.0) if forces is None else forces
    )


def test_weighted_sum() -> None:
    terms = EnergyForceLoss(energy=0.1, forces=0.9)(prediction(), molecules())
    assert terms["energy"].item() == pytest.approx(0.1 * (1 + 9) / 2)
    assert terms["forces"].item() == pytest.approx(0.9 * 4)


def test_residuals_are_measured_in_the_spread_of_the_labels() -> None:
    loss = EnergyForceLoss(energy=0.1, forces=0.9)
    loss.standardize(2.0)
    terms = loss(prediction(), molecules())
    assert terms["energy"].item() == pytest.approx(0.1 * 5 / 4)
    assert terms["forces"].item() == pytest.approx(0.9)


def test_small_difference_of_large_energies_survives() -> None:
    # in float32 both energies would be equal
    residual = Term("energy").residual(prediction((-1e6 + 1e-5, -1e6)), molecules((-1e6, -1e6)))
    assert residual.dtype == torch.float32
    torch.testing.assert_close(residual, torch.tensor([1e-5, 0.0]), rtol=1e-4, atol=1e-12)


def test_per_atom() -> None:
    term = PerAtomTerm("energy", error=AbsoluteError())
    assert term(prediction(), molecules()).item() == pytest.approx((1 / 2 + 3 / 3) / 2)
    loss = EnergyForceLoss(per_atom=True)
    assert isinstance(loss.terms["energy"], PerAtomTerm)
    assert not isinstance(loss.terms["forces"], PerAtomTerm)


@pytest.mark.parametrize(
    ("error", "expected"),
    [(AbsoluteError(), 2.5), (SquaredError(), 8.5), (HuberError(1.0), 2.0), (VectorError(), 17**0.5)],
)
def test_errors(error: Error, expected: float) -> None:
    assert error(torch.tensor([[1.0, -4.0]])).tolist() == pytest.approx([expected])
    assert error(torch.tensor([[0.0, 0.0]])).tolist() == [0.0]


def test_huber_has_the_value_of_torch() -> None:
    residual = torch.linspace(-2, 2, 9)
    expected = torch.nn.functional.huber_loss(residual, torch.zeros(9), reduction="none", delta=0.7)
    torch.testing.assert_close(HuberError(0.7)(residual), expected)


def test_length_of_a_vanishing_vector_has_a_gradient() -> None:
    residual = torch.zeros(2, 3, requires_grad=True)
    VectorError()(residual).sum().backward()
    assert residual.grad is not None
    assert residual.grad.eq(0).all()


def test_stress_and_further_quantities() -> None:
    batch = molecules()
    batch.stress = torch.zeros(2, 3, 3)
    batch.dipole = torch.zeros(2, 3)
    guess = prediction()._replace(stress=torch.ones(2, 3, 3), properties={"dipole": torch.full((2, 3), 3.0)})
    assert EnergyForceLoss(stress=5.0)(guess, batch)["stress"].item() == pytest.approx(5.0)
    assert WeightedLoss([Term("dipole", 2.0, AbsoluteError())])(guess, batch)["dipole"].item() == pytest.approx(6.0)


def test_blame_names_the_sample() -> None:
    loss = EnergyForceLoss()
    nan = torch.zeros(5, 3)
    nan[4, 1] = torch.nan  # an atom of the second molecule
    assert "prediction of forces is not finite for sample 73:" in loss.blame(prediction(forces=nan), molecules())
    assert "label of energy is not finite for sample 72:" in loss.blame(prediction(), molecules((torch.inf, 0.0)))
    assert "overflows" in loss.blame(prediction(), molecules())


def test_refusals() -> None:
    with pytest.raises(ValueError, match="positive, got 0"):
        Term("energy", 0.0)
    with pytest.raises(ValueError, match="at least one term"):
        EnergyForceLoss(energy=0.0, forces=0.0)
    with pytest.raises(ValueError, match="no quantity twice"):
        WeightedLoss([Term("energy"), Term("energy")])
    with pytest.raises(ValueError, match="delta"):
        HuberError(0.0)
    with pytest.raises(ValueError, match="are all labels equal"):
        EnergyForceLoss().standardize(0.0)
    with pytest.raises(ValueError, match=r"stress is in the loss, but the data carry no such label: only .*forces"):
        EnergyForceLoss(stress=1.0)(prediction()._replace(stress=torch.ones(2, 3, 3)), molecules())
    with pytest.raises(KeyError, match="does not predict 'stress'"):
        EnergyForceLoss(stress=1.0)(prediction(), molecules())
