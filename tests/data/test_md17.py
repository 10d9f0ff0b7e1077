import hashlib
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from pyg_equivariant.data import cache, md17
from pyg_equivariant.data.md17 import MD17, MOLECULES
from pyg_equivariant.units import KCAL_MOL

DATA = os.environ.get("PYG_EQUIVARIANT_DATA")
needs_data = pytest.mark.skipif(
    DATA is None or not (Path(DATA) / "rmd17" / "rmd17_aspirin.npz").is_file(),
    reason="needs rmd17/rmd17_aspirin.npz in PYG_EQUIVARIANT_DATA",
)


def arrays(frames=6, atoms=3, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "nuclear_charges": np.array([8, 1, 1], dtype=np.uint8)[:atoms],
        "coords": rng.normal(size=(frames, atoms, 3)),
        "energies": rng.normal(size=frames) - 1e5,
        "forces": rng.normal(size=(frames, atoms, 3)),
        "old_indices": np.arange(frames),
    }


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """No data anywhere, and no network."""
    monkeypatch.delenv("PYG_EQUIVARIANT_DATA", raising=False)
    monkeypatch.setenv("PYG_EQUIVARIANT_CACHE", str(tmp_path / "cache"))

    def refuse(url, timeout):
        raise TimeoutError("no network in tests")

    monkeypatch.setattr(cache.urllib.request, "urlopen", refuse)
    return tmp_path


@pytest.mark.parametrize("folder", [".", "rmd17", "npz_data", "rmd17/npz_data"])
def test_found_in_root(empty, folder):
    raw = arrays()
    (empty / folder).mkdir(parents=True, exist_ok=True)
    np.savez(empty / folder / "rmd17_ethanol.npz", **raw)
    dataset = MD17("ethanol", empty)
    assert len(dataset) == 6
    assert dataset[2].z.tolist() == [8, 1, 1]
    assert dataset[2].energy.dtype == dataset[2].forces.dtype == dataset[2].pos.dtype == torch.float64
    assert float(dataset[2].energy) == raw["energies"][2] * KCAL_MOL
    np.testing.assert_array_equal(dataset[2].forces.numpy(), raw["forces"][2] * KCAL_MOL)
    np.testing.assert_array_equal(dataset[2].pos.numpy(), raw["coords"][2])


def test_found_through_the_environment(empty, monkeypatch):
    (empty / "data" / "rmd17").mkdir(parents=True)
    np.savez(empty / "data" / "rmd17" / "rmd17_uracil.npz", **arrays())
    monkeypatch.setenv("PYG_EQUIVARIANT_DATA", str(empty / "data"))
    assert len(MD17("uracil")) == 6
    assert len(MD17("uracil", empty / "elsewhere")) == 6


def test_original(empty):
    raw = arrays()
    np.savez(
        empty / "md17_benzene2017.npz",
        z=raw["nuclear_charges"], R=raw["coords"], E=raw["energies"][:, None], F=raw["forces"],
    )  # fmt: skip
    dataset = MD17("benzene", empty, revised=False)
    np.testing.assert_array_equal(dataset.column("energy").numpy(), raw["energies"] * KCAL_MOL)
    train, test = dataset.split(3)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(6))


def test_splits(empty):
    (empty / "splits").mkdir()
    np.savez(empty / "rmd17_ethanol.npz", **arrays())
    dataset = MD17("ethanol", empty)
    with pytest.raises(FileNotFoundError, match=r"index_train_02\.csv was not found"):
        dataset.split(2)
    np.savetxt(empty / "splits" / "index_train_02.csv", [4, 1, 0], fmt="%d")
    np.savetxt(empty / "splits" / "index_test_02.csv", [2, 9], fmt="%d")
    with pytest.raises(ValueError, match="names frames that"):
        dataset.split(2)
    np.savetxt(empty / "splits" / "index_test_02.csv", [2], fmt="%d")
    train, test = dataset.split(2)
    assert train.tolist() == [4, 1, 0]
    assert test.tolist() == [2]


def test_sentences(empty):
    with pytest.raises(ValueError, match="no molecule 'water' in MD17: there are aspirin"):
        MD17("water", empty)
    with pytest.raises(FileNotFoundError, match=r"rmd17_ethanol\.npz is not in .*: put it into"):
        MD17("ethanol", empty)
    with pytest.raises(FileNotFoundError, match=r"azobenzene_dft\.npz is not in"):
        MD17("azobenzene", empty, revised=False)
    (empty / "rmd17_ethanol.npz").write_bytes(b"not an archive")
    with pytest.raises(ValueError, match=r"rmd17_ethanol\.npz is damaged"):
        MD17("ethanol", empty)
    np.savez(empty / "rmd17_ethanol.npz", **{k: v for k, v in arrays().items() if k != "forces"})
    with pytest.raises(ValueError, match="lacks the array 'forces'"):
        MD17("ethanol", empty)
    np.savez(empty / "rmd17_ethanol.npz", **arrays() | {"energies": np.zeros(5)})
    with pytest.raises(ValueError, match="do not fit together"):
        MD17("ethanol", empty)


def test_archive_is_downloaded_checked_and_unpacked(empty, monkeypatch):
    archive, part = io.BytesIO(), io.BytesIO()
    np.savez(part, **arrays())
    with tarfile.open(fileobj=archive, mode="w:bz2") as tar:
        files = {"npz_data/rmd17_toluene.npz": part.getvalue(), "splits/index_train_01.csv": b"1\n0\n"}
        for name, content in (files | {"splits/index_test_01.csv": b"5\n", "readme.txt": b"x"}).items():
            info = tarfile.TarInfo(f"rmd17/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    monkeypatch.setattr(cache.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(archive.getvalue()))
    with pytest.raises(ValueError, match="has the SHA-256"):
        MD17("toluene")
    assert not list((empty / "cache").rglob("*.bz2*"))
    monkeypatch.setattr(md17, "_REVISED_SHA256", hashlib.sha256(archive.getvalue()).hexdigest())
    dataset = MD17("toluene")
    assert len(dataset) == 6
    assert [part.tolist() for part in dataset.split(1)] == [[1, 0], [5]]


def test_original_is_checked_by_its_fingerprint(empty, monkeypatch):
    raw = arrays()
    named = {"z": raw["nuclear_charges"], "R": raw["coords"], "E": raw["energies"], "F": raw["forces"]}
    parts = b"".join(hashlib.md5(array.tobytes()).digest() for array in named.values())
    for md5, good in ((hashlib.md5(parts).hexdigest(), True), ("0" * 32, False)):
        file = io.BytesIO()
        np.savez(file, **named, md5=np.array(md5.encode()))
        content = file.getvalue()
        monkeypatch.setattr(cache.urllib.request, "urlopen", lambda url, timeout, c=content: io.BytesIO(c))
        if good:
            assert len(MD17("aspirin", revised=False)) == 6
        else:
            with pytest.raises(ValueError, match="fingerprint"):
                MD17("uracil", revised=False)
    assert [path.name for path in (empty / "cache" / "md17").iterdir()] == ["md17_aspirin.npz"]


@needs_data
@pytest.mark.parametrize("molecule", MOLECULES)
def test_the_real_thing(molecule):
    if not (Path(str(DATA)) / "rmd17" / f"rmd17_{molecule}.npz").is_file():
        pytest.skip(f"rmd17_{molecule}.npz is not in PYG_EQUIVARIANT_DATA")
    dataset = MD17(molecule)
    train, test = dataset.split(1)
    assert len(train) == len(test) == 1000
    assert not set(train.tolist()) & set(test.tolist())
    dataset.require("energy", "forces")
    per_atom = dataset.column("energy") / dataset.num_atoms
    assert -1500 < float(per_atom.min()) < float(per_atom.max()) < -200  # eV
    assert 0.5 < float(dataset.column("forces").square().mean().sqrt()) < 3  # eV/Å
    assert dataset.column("forces").reshape(len(dataset), -1, 3).sum(1).abs().max() < 0.1
