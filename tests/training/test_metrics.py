import numpy as np
import pytest
import torch

from pyg_equivariant.training import Errors, Row
from pyg_equivariant.training.callbacks import format_table
from pyg_equivariant.training.metrics import reported


def test_errors_of_batches_are_those_of_the_whole() -> None:
    generator = np.random.default_rng(0)
    residual, label = generator.normal(size=(50, 3)), generator.normal(-3.0, 2.0, size=(50, 3))
    errors = Errors(factor=1000.0)
    for rows in (slice(0, 7), slice(7, 50)):
        errors.update(torch.tensor(residual[rows]), torch.tensor(label[rows]))
    values = errors.compute()
    assert float(values["mae"]) == pytest.approx(1000 * np.abs(residual).mean())
    assert float(values["rmse"]) == pytest.approx(1000 * np.sqrt((residual**2).mean()))
    assert float(values["spread"]) == pytest.approx(1000 * label.std())
    assert int(values["samples"]) == 150
    errors.reset()
    errors.update(torch.ones(2), torch.zeros(2))
    assert int(errors.compute()["samples"]) == 2


@pytest.mark.parametrize(
    ("unit", "expected", "factor"),
    [
        ("eV", "meV", 1000.0),
        ("eV/Å", "meV/Å", 1000.0),
        ("eV/Å³", "meV/Å³", 1000.0),
        ("e·Å", "D", 4.80320),
        ("D", "D", 1.0),
        ("cal/mol/K", "cal/mol/K", 1.0),
        ("", "", 1.0),
    ],
)
def test_units_of_the_tables(unit: str, expected: str, factor: float) -> None:
    assert reported(unit)[0] == expected
    assert reported(unit)[1] == pytest.approx(factor, rel=1e-5)


def test_table_is_aligned() -> None:
    text = format_table([Row("energy", "meV", 1234.5, 0.01234, 5.0, 10), Row("r2", "a0^2", 0.0, 1e-9, float("nan"), 7)])
    lines = text.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split() == ["energy", "meV", "1234", "0.01234", "5.000", "10"]
    assert lines[2].split() == ["r2", "a0^2", "0.0", "1.000e-09", "nan", "7"]
