"""What a report can hold: plain typed records, checked when they are made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int, Num

import pyg_equivariant

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["Curve", "Dynamics", "Headline", "LearningCurve", "Parity", "Provenance", "Report", "Trajectory"]


@dataclass(frozen=True)
class Headline:
    """One row of the summary table; the first four are shown large.

    Args:
        metric: Such as ``"Force MAE"``.
        value: In ``unit``.
        unit: Such as ``"meV/Å"``.
        spread: How much the labels themselves vary (their standard deviation), in the same unit.
        note: A few words under the number.
    """

    metric: str
    value: float
    unit: str = ""
    spread: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """A quantity over the training, such as the one called ``"train"`` or ``"validation"``.

    Raises:
        ValueError: if ``x`` and ``y`` differ in length.
    """

    name: str
    x: Num[np.ndarray, "..."]
    y: Num[np.ndarray, "..."]

    def __post_init__(self) -> None:
        _check_rows(f"curve {self.name!r}", x=self.x, y=self.y)


@dataclass(frozen=True)
class LearningCurve:
    """Curves that share one chart.

    Args:
        title: Such as ``"Force MAE"``.
        curves: Usually train and validation.
        unit: Of the ordinate.
        axis: Of the abscissa: ``"epoch"``, ``"step"``, ``"seconds"``.
        log: Logarithmic ordinate; values that are not positive are then left out.
    """

    title: str
    curves: Sequence[Curve]
    unit: str = ""
    axis: str = "epoch"
    log: bool = True


@dataclass(frozen=True)
class Parity:
    """Predictions beside their references.

    Args:
        name: Such as ``"Forces"``.
        unit: Of both arrays.
        reference: ``[n]`` or ``[n, 3]``, finite.
        predicted: The same shape, finite.
        elements: Atomic number of each of the ``n`` rows, where rows are atoms.
        note: A sentence under the plot.

    Raises:
        ValueError: if shapes disagree, or a value is missing.
    """

    name: str
    unit: str
    reference: Num[np.ndarray, "..."]
    predicted: Num[np.ndarray, "..."]
    elements: Int[np.ndarray, "..."] | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.reference.shape != self.predicted.shape or self.reference.ndim not in (1, 2) or not self.reference.size:
            raise ValueError(
                f"parity {self.name!r} needs two equal shapes [n] or [n, k] that are not empty, "
                f"got {self.reference.shape} and {self.predicted.shape}"
            )
        for field_name, array in (("reference", self.reference), ("predicted", self.predicted)):
            if not np.isfinite(array).all():
                row = int(np.argwhere(~np.isfinite(array))[0][0])
                raise ValueError(f"parity {self.name!r}: {field_name} is not finite in row {row}: leave such rows out")
        if self.elements is not None and self.elements.shape != self.reference.shape[:1]:
            raise ValueError(
                f"parity {self.name!r} needs one atomic number a row ({len(self.reference)}), got {self.elements.shape}"
            )

    @cached_property
    def error(self) -> Num[np.ndarray, "..."]:
        """Predicted − reference."""
        return self.predicted.astype(np.float64) - self.reference.astype(np.float64)

    @property
    def mae(self) -> float:
        """Mean absolute error over all components."""
        return float(np.abs(self.error).mean())

    @property
    def rmse(self) -> float:
        """Root mean square error over all components."""
        return float(np.sqrt(np.square(self.error).mean()))

    @property
    def spread(self) -> float:
        """Standard deviation of the references, over all components."""
        return float(self.reference.astype(np.float64).std())

    def of_element(self, number: int) -> "Parity":
        """The rows of one element.

        Raises:
            ValueError: if the rows have no elements, or none this one.
        """
        if self.elements is None:
            raise ValueError(f"parity {self.name!r} has no elements")
        rows = self.elements == number
        return Parity(self.name, self.unit, self.reference[rows], self.predicted[rows], self.elements[rows], self.note)


@dataclass(frozen=True)
class Dynamics:
    """A trace at constant energy.

    Args:
        name: Such as ``"NVE, 300 K"``.
        time: In ps.
        energy: Total (potential + kinetic) energy in meV/atom; its zero does not matter.
        temperature: In K.

    Raises:
        ValueError: if the lengths differ, there are fewer than two points, or an energy is not finite.
    """

    name: str
    time: Num[np.ndarray, "..."]
    energy: Num[np.ndarray, "..."]
    temperature: Num[np.ndarray, "..."] | None = None

    def __post_init__(self) -> None:
        arrays = {"time": self.time, "energy": self.energy}
        if self.temperature is not None:
            arrays["temperature"] = self.temperature
        _check_rows(f"dynamics {self.name!r}", **arrays)
        if len(self.time) < 2:
            raise ValueError(f"dynamics {self.name!r} needs at least two points in time, got {len(self.time)}")
        for field_name, array in arrays.items():
            if not np.isfinite(array).all():
                row = int(np.argwhere(~np.isfinite(array))[0][0])
                raise ValueError(
                    f"dynamics {self.name!r}: {field_name} is not finite at point {row}: cut it before that"
                )

    @property
    def drift(self) -> float:
        """Slope of the least-squares line through the energy, in meV/atom/ps."""
        time = self.time - self.time.mean()
        return float((time * (self.energy - self.energy.mean())).sum() / np.square(time).sum())

    @property
    def fluctuation(self) -> float:
        """Standard deviation of the energy about that line, in meV/atom."""
        line = self.energy.mean() + self.drift * (self.time - self.time.mean())
        return float((self.energy - line).std())


@dataclass(frozen=True)
class Trajectory:
    """Structures for the 3D view, one or many, all of the same atoms.

    Args:
        frames: ``ase.Atoms``, at least one.
        time: Of each frame, in ps.
        caption: A sentence under the view.

    Raises:
        ValueError: if there is no frame, or a frame holds other atoms than the first.
    """

    frames: "Sequence[Atoms]"
    time: Num[np.ndarray, "..."] | None = None
    caption: str = ""

    def __post_init__(self) -> None:
        if not self.frames or not len(self.frames[0]):
            raise ValueError("a trajectory needs at least one frame with at least one atom")
        for i, frame in enumerate(self.frames):
            if not np.array_equal(frame.numbers, self.frames[0].numbers):
                raise ValueError(f"frame {i} of the trajectory holds other atoms than frame 0")
            if not np.isfinite(frame.positions).all():
                raise ValueError(f"frame {i} of the trajectory has a position that is not finite: cut it before that")
        if self.time is not None and self.time.shape != (len(self.frames),):
            raise ValueError(f"a trajectory of {len(self.frames)} frames needs as many times, got {self.time.shape}")


@dataclass(frozen=True)
class Provenance:
    """Where the numbers come from.

    Args:
        command: What was typed.
        digest: Of the split and the labels.
        dataset: Name of the data.
        seconds: Wall time of the training.
        version: Of this package.
        more: Further rows.
    """

    command: str = ""
    digest: str = ""
    dataset: str = ""
    seconds: float | None = None
    version: str = pyg_equivariant.__version__
    more: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """All that :func:`~pyg_equivariant.report.write_report` can show; what is missing gets no section.

    Args:
        title: Of the page.
        subtitle: One sentence under it.
        summary: Headline numbers.
        history: Learning curves.
        parity: Predictions beside references; those with elements also give the error by element.
        dynamics: Traces of the energy.
        trajectory: For the 3D view.
        configuration: What the run was configured with, nested as YAML is.
        provenance: Version, command, data.
    """

    title: str
    subtitle: str = ""
    summary: Sequence[Headline] = ()
    history: Sequence[LearningCurve] = ()
    parity: Sequence[Parity] = ()
    dynamics: Sequence[Dynamics] = ()
    trajectory: Trajectory | None = None
    configuration: Mapping[str, Any] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)


def _check_rows(what: str, **arrays: Num[np.ndarray, "..."]) -> None:
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"{what} needs one-dimensional arrays of one length, got {listed}")
