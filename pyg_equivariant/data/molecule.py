"""Molecules: from SMILES and RDKit to geometric graphs, and back."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers
from torch_geometric.data import Batch, Data
from tqdm.auto import tqdm

__all__ = ["Failure", "from_rdkit", "from_smiles", "to_rdkit"]

_RANDOM_TRIES = 100
_MMFF_STEPS = 10_000
_FRAGMENT_GAP = 3.0  # Å, about a van der Waals contact
_CIS = {Chem.BondStereo.STEREOZ, Chem.BondStereo.STEREOCIS}
_TRANS = {Chem.BondStereo.STEREOE, Chem.BondStereo.STEREOTRANS}
_TETRAHEDRAL = {Chem.ChiralType.values[code] for code in (0, 1, 2)}  # none, clockwise, counter-clockwise
_ATOM_FIELDS = ("z", "pos", "formal_charge", "isotope", "radicals", "chiral_tag")
_BOND_FIELDS = ("bond_index", "bond_type", "stereo_index", "stereo_type")


class Failure(NamedTuple):
    """A SMILES that became no graph.

    Attributes:
        index: Its position in the list given.
        smiles: The SMILES as given.
        reason: What went wrong, a sentence without a full stop.
    """

    index: int  # type: ignore[assignment]  # shadows tuple.index, which nobody misses here
    smiles: str
    reason: str


@overload
def from_smiles(  # type: ignore[overload-overlap]  # a str is a Sequence[str] too; the first wins
    smiles: str,
    *,
    num_conformers: int = ...,
    seed: int = ...,
    optimize: bool = ...,
    num_workers: int | None = ...,
    progress: bool = ...,
) -> list[Data]: ...
@overload
def from_smiles(
    smiles: Sequence[str],
    *,
    num_conformers: int = ...,
    seed: int = ...,
    optimize: bool = ...,
    num_workers: int | None = ...,
    progress: bool = ...,
) -> tuple[list[Data], list[Failure]]: ...
def from_smiles(
    smiles: str | Sequence[str],
    *,
    num_conformers: int = 1,
    seed: int = 0,
    optimize: bool = False,
    num_workers: int | None = None,
    progress: bool = True,
) -> list[Data] | tuple[list[Data], list[Failure]]:
    """Conformers of one molecule, or of many.

    Hydrogens are made explicit, coordinates come from seeded ETKDGv3 and, where that finds none, from random
    starts. The parts of a salt or complex are embedded one by one and set side by side, 3 Å apart. The
    result depends neither on the number of workers nor on the other molecules.

    Args:
        smiles: One SMILES, or several.
        num_conformers: Conformers per molecule.
        seed: Seed of the embedding, the same for every molecule.
        optimize: Whether to relax each conformer with MMFF94.
        num_workers: Threads (RDKit works outside Python's lock); all cores by default.
        progress: Whether to show a bar once many molecules have taken more than a second.

    Returns:
        For one SMILES the list of its conformers. For several, all conformers in the order given (those of one
        molecule together, ``smiles`` as given) and the :class:`Failure`s. The fields are those of
        :func:`from_rdkit`.

    Raises:
        ValueError: if the only SMILES fails; or if ``num_conformers`` or ``num_workers`` is below 1 or
            ``seed`` negative.

    Example:
        >>> ethanol, other = from_smiles("CCO", num_conformers=2)
        >>> ethanol.z.tolist(), ethanol.bond_index.shape
        ([6, 6, 8, 1, 1, 1, 1, 1, 1], torch.Size([2, 8]))
        >>> graphs, failures = from_smiles(["CCO", "c1cccc1"])
        >>> len(graphs), failures[0].reason
        (1, "Can't kekulize mol.  Unkekulized atoms: 0 1 2 3 4")
    """
    workers = (os.cpu_count() or 1) if num_workers is None else num_workers
    for name, value, least in ("num_conformers", num_conformers, 1), ("num_workers", workers, 1), ("seed", seed, 0):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if isinstance(smiles, str):
        try:
            mol = _embed(_parse(smiles), num_conformers, seed, optimize, workers)
        except ValueError as error:
            raise ValueError(f"no graph can be made of the SMILES {smiles!r}: {error}") from error
        return _conformers(mol, smiles)

    graphs: list[Data] = []
    failures: list[Failure] = []
    executor = ThreadPoolExecutor(workers)
    try:
        jobs: list[Future[Chem.Mol] | ValueError] = []
        for text in smiles:
            try:
                jobs.append(executor.submit(_embed, _parse(text), num_conformers, seed, optimize, 1))
            except ValueError as error:
                jobs.append(error)
        bar = tqdm(jobs, "embedding", unit="mol", delay=1.0, disable=not progress)
        for i, (text, job) in enumerate(zip(smiles, bar, strict=True)):
            try:
                if isinstance(job, ValueError):
                    raise job
                graphs += _conformers(job.result(), text)
            except ValueError as error:
                failures.append(Failure(i, text, str(error)))
    finally:
        executor.shutdown(cancel_futures=True)
    return graphs, failures


def from_rdkit(mol: Chem.Mol, conformer: int = -1) -> Data:
    """The graph of one conformer of an RDKit molecule with explicit hydrogens.

    Fields, for n atoms, K bonds and S stereo double bonds: ``z`` [n]; ``pos`` [n, 3] in Å, float64;
    ``total_charge`` [1] in e; ``smiles``, canonical; ``bond_index`` [2, K], each bond once; ``bond_type`` [K],
    RDKit's (1, 2, 3, aromatic 12, dative 17); ``formal_charge``, ``isotope`` (mass number, 0 if natural),
    ``radicals`` (unpaired electrons) and ``chiral_tag`` (0 none, 1 clockwise, 2 counter-clockwise, in the order
    of the bonds), all [n]; ``stereo_index`` [4, S], the atoms a, i, j, b of ``a–i=j–b``, and ``stereo_type`` [S],
    0 where a and b are cis, 1 where trans. Atom map numbers are not kept.

    Args:
        mol: The molecule.
        conformer: Id of the conformer; −1 is the first.

    Raises:
        ValueError: if the molecule has no such conformer, only a 2D drawing, implicit hydrogens, placeholder
            atoms, or stereo centres that are not tetrahedral.

    Example:
        >>> from_rdkit(to_rdkit(from_smiles("C[C@H](N)C(=O)O")[0])).smiles
        'C[C@H](N)C(=O)O'
    """
    _check_atoms(mol)
    ids = [item.GetId() for item in mol.GetConformers()]
    if not ids:
        raise ValueError("the molecule has no conformer: embed it with RDKit's EmbedMolecule or use from_smiles")
    if conformer >= 0 and conformer not in ids:
        raise ValueError(f"the molecule has no conformer {conformer}, only {', '.join(map(str, ids))}")
    if not mol.GetConformer(conformer).Is3D():
        raise ValueError("the molecule's coordinates are a 2D drawing: embed it with RDKit's EmbedMolecule")
    mol = Chem.Mol(mol)
    mol.UpdatePropertyCache(strict=False)
    if count := sum(atom.GetTotalNumHs() for atom in mol.GetAtoms()):
        raise ValueError(f"the molecule lacks {count} hydrogens: add them with Chem.AddHs(mol, addCoords=True)")
    return _graph(mol, conformer, _smiles(mol))


def to_rdkit(data: Data) -> Chem.Mol | list[Chem.Mol]:
    """The RDKit molecule of a graph that came from SMILES or RDKit, with its conformer; a list for a batch.

    Charges, isotopes, radicals, bonds, aromaticity and stereo are as they were, the order of atoms too.

    Raises:
        ValueError: if the graph lacks the fields of :func:`from_rdkit`, or they make no molecule.

    Example:
        >>> mol = to_rdkit(from_smiles("CCO")[0])
        >>> mol.GetNumAtoms(), mol.GetNumConformers()
        (9, 1)
    """
    if isinstance(data, Batch):
        return [_molecule(item) for item in data.to_data_list()]
    return _molecule(data)


def _molecule(data: Data) -> Chem.Mol:
    if missing := [name for name in _ATOM_FIELDS + _BOND_FIELDS if name not in data]:
        raise ValueError(f"the graph has no {', '.join(missing)}: only graphs of from_smiles and from_rdkit have bonds")
    mol = Chem.RWMol()
    for z, charge, isotope, radicals in zip(
        data.z.tolist(), data.formal_charge.tolist(), data.isotope.tolist(), data.radicals.tolist(), strict=True
    ):
        atom = Chem.Atom(z)
        atom.SetFormalCharge(charge)
        atom.SetIsotope(isotope)
        atom.SetNumRadicalElectrons(radicals)
        atom.SetNoImplicit(True)
        mol.AddAtom(atom)
    for i, j, code in zip(*data.bond_index.tolist(), data.bond_type.tolist(), strict=True):
        mol.AddBond(i, j, Chem.BondType.values[code])
        if Chem.BondType.values[code] == Chem.BondType.AROMATIC:
            mol.GetBondBetweenAtoms(i, j).SetIsAromatic(True)
            mol.GetAtomWithIdx(i).SetIsAromatic(True)
            mol.GetAtomWithIdx(j).SetIsAromatic(True)
    for atom, tag in zip(mol.GetAtoms(), data.chiral_tag.tolist(), strict=True):
        atom.SetChiralTag(Chem.ChiralType.values[tag])
    for a, i, j, b, trans in zip(*data.stereo_index.tolist(), data.stereo_type.tolist(), strict=True):
        bond = mol.GetBondBetweenAtoms(i, j)
        bond.SetStereoAtoms(a, b)
        bond.SetStereo(Chem.BondStereo.STEREOTRANS if trans else Chem.BondStereo.STEREOCIS)
    conformer = Chem.Conformer(mol.GetNumAtoms())
    conformer.SetPositions(data.pos.detach().double().cpu().numpy())
    mol.AddConformer(conformer, assignId=True)
    # Radicals are data here, and nothing is to be cleaned up: the molecule was sanitized once.
    steps = Chem.SANITIZE_PROPERTIES | Chem.SANITIZE_SYMMRINGS | Chem.SANITIZE_KEKULIZE | Chem.SANITIZE_SETAROMATICITY
    steps |= Chem.SANITIZE_SETCONJUGATION | Chem.SANITIZE_SETHYBRIDIZATION
    try:
        Chem.SanitizeMol(mol, steps)
    except Chem.MolSanitizeException as error:
        raise ValueError(f"the graph's bonds make no molecule: {error}") from error
    Chem.SetDoubleBondNeighborDirections(mol)  # without them RDKit forgets cis and trans
    Chem.AssignStereochemistry(mol, cleanIt=True, force=True)
    return mol.GetMol()


def explained(read: Callable[[], Chem.Mol | None], read_raw: Callable[[], Chem.Mol | None]) -> Chem.Mol:
    """The molecule that ``read`` returns; where it returns none, why RDKit could not make one.

    Args:
        read: Reads and sanitizes.
        read_raw: Only reads: on what it returns, RDKit can be asked for the chemistry problems.

    Raises:
        ValueError: if there is no molecule; the message is RDKit's reason alone.
    """
    # RDKit writes syntax errors to its log, readable since 2026.3; with an older one the log is merely silenced.
    with rdBase.CaptureErrorLog() if hasattr(rdBase, "CaptureErrorLog") else rdBase.BlockLogs() as log:
        mol = read()
        raw = read_raw() if mol is None else None
        problems = [] if raw is None else [problem.Message() for problem in Chem.DetectChemistryProblems(raw)]
    if mol is None:
        lines = re.sub(r"^\[[\d:]+\] ", "", getattr(log, "messages", ""), flags=re.MULTILINE).splitlines()
        raise ValueError("; ".join(problems) or next(iter(lines), "RDKit cannot read it"))
    return mol


def _parse(smiles: str) -> Chem.Mol:
    """The molecule with explicit hydrogens, or a ValueError that holds the reason alone."""
    if not smiles.strip():
        raise ValueError("it is empty")
    mol = explained(lambda: Chem.MolFromSmiles(smiles), lambda: Chem.MolFromSmiles(smiles, sanitize=False))
    _check_atoms(mol)
    return Chem.AddHs(mol)


def _check_atoms(mol: Chem.Mol) -> None:
    for atom in mol.GetAtoms():
        if atom.GetAtomicNum() == 0:
            raise ValueError(f"atom {atom.GetIdx()} ({atom.GetSmarts()}) is a placeholder, not an element")
        if atom.GetChiralTag() not in _TETRAHEDRAL:
            raise ValueError(f"the stereo mark of atom {atom.GetIdx()} ({atom.GetSymbol()}) is not tetrahedral")


def _embed(mol: Chem.Mol, num_conformers: int, seed: int, optimize: bool, num_threads: int) -> Chem.Mol:
    parameters: Any = rdDistGeom.ETKDGv3()
    parameters.randomSeed = seed + 1  # with 0, RDKit makes all conformers alike
    parameters.numThreads = num_threads
    parameters.clearConfs = False
    rdDistGeom.EmbedMultipleConfs(mol, num_conformers, parameters)
    if missing := num_conformers - mol.GetNumConformers():
        parameters.useRandomCoords = True
        parameters.maxIterations = _RANDOM_TRIES
        parameters.trackFailures = True
        rdDistGeom.EmbedMultipleConfs(mol, missing, parameters)
    if missing := num_conformers - mol.GetNumConformers():
        counts = dict(zip(rdDistGeom.EmbedFailureCauses.names, parameters.GetFailureCounts(), strict=False))
        cause = max(counts, key=lambda name: counts[name])
        raise ValueError(
            f"{missing} of {num_conformers} conformers could not be embedded, in {_RANDOM_TRIES} tries from random "
            f"coordinates either (RDKit: mostly {cause}): are its stereo and its rings possible?"
        )
    _spread(mol)
    if optimize:
        if not rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
            raise ValueError("MMFF94 lacks parameters for it: use optimize=False")
        results = rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(
            mol, numThreads=num_threads, maxIters=_MMFF_STEPS, ignoreInterfragInteractions=False
        )
        if any(code != 0 for code, _ in results):
            raise ValueError(f"MMFF94 did not converge in {_MMFF_STEPS} steps: use optimize=False")
    return mol


def _spread(mol: Chem.Mol) -> None:
    """Sets the parts of the molecule side by side along x; RDKit leaves all of them at the origin."""
    fragments = Chem.GetMolFrags(mol)
    for conformer in mol.GetConformers() if len(fragments) > 1 else ():
        pos, edge = np.array(conformer.GetPositions()), 0.0
        for atoms in map(list, fragments):
            pos[atoms, 0] += edge - pos[atoms, 0].min()
            edge = pos[atoms, 0].max() + _FRAGMENT_GAP
        conformer.SetPositions(pos)


def _conformers(mol: Chem.Mol, smiles: str) -> list[Data]:
    return [_graph(mol, conformer.GetId(), smiles) for conformer in mol.GetConformers()]


def _smiles(mol: Chem.Mol) -> str:
    """Canonical SMILES without the explicit hydrogens."""
    with rdBase.BlockLogs():  # "not removing hydrogen atom without neighbors" is no news
        return str(Chem.MolToSmiles(Chem.RemoveHs(mol)))


def _graph(mol: Chem.Mol, conformer: int, smiles: str) -> Data:
    atoms, bonds = list(mol.GetAtoms()), list(mol.GetBonds())
    stereo = [bond for bond in bonds if bond.GetStereo() in _CIS | _TRANS]
    quads = []
    for bond in stereo:
        a, b = bond.GetStereoAtoms()
        quads.append([a, bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), b])
    return Data(
        z=_integers(atom.GetAtomicNum() for atom in atoms),
        pos=torch.from_numpy(np.array(mol.GetConformer(conformer).GetPositions())).reshape(-1, 3),
        total_charge=torch.tensor([float(Chem.GetFormalCharge(mol))], dtype=torch.float64),
        smiles=smiles,
        bond_index=torch.stack(
            [_integers(bond.GetBeginAtomIdx() for bond in bonds), _integers(bond.GetEndAtomIdx() for bond in bonds)]
        ),
        bond_type=_integers(int(bond.GetBondType()) for bond in bonds),
        formal_charge=_integers(atom.GetFormalCharge() for atom in atoms),
        isotope=_integers(atom.GetIsotope() for atom in atoms),
        radicals=_integers(atom.GetNumRadicalElectrons() for atom in atoms),
        chiral_tag=_integers(int(atom.GetChiralTag()) for atom in atoms),
        stereo_index=torch.tensor(quads, dtype=torch.int64).reshape(-1, 4).T.contiguous(),
        stereo_type=_integers(int(bond.GetStereo() in _TRANS) for bond in stereo),
    )


def _integers(values: Iterable[int]) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.int64)
