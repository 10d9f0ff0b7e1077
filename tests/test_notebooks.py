import re
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
ABSOLUTE = re.compile(r"(?<![\w./~:])(/[\w.-]+){2,}|\b[A-Z]:\\|site-packages")

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell):
    """What a cell prints and returns, pictures aside."""
    for output in cell.outputs:
        yield output.get("text", "")
        yield from (text for kind, text in output.get("data", {}).items() if kind.startswith("text/"))


def test_there_are_notebooks():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03"]


@each
def test_what_is_kept(path):
    """Outputs of one run from top to bottom, small, without warnings and paths of a machine."""
    assert path.stat().st_size < 400_000
    cells = code_cells(nbformat.read(path, as_version=4))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
    for cell in cells:
        for text in texts(cell):
            assert not ABSOLUTE.search(text), f"a path of some machine: {ABSOLUTE.search(text)}"
            assert "Warning" not in text


def test_a_path_is_found_out():
    for text in ("in /home/someone/x.py", "/tmp/ipykernel_1/2.py:10: UserWarning", r"C:\Users", "…/site-packages/tqdm"):
        assert ABSOLUTE.search(text)
    for text in ("meV/atom/ps", "eV/Å", "https://example.org/a/b", "datasets/ethanol.npz", "cal/mol/K"):
        assert not ABSOLUTE.search(text)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # those of Jupyter are its own matter
@each
def test_runs(path, tmp_path, monkeypatch):
    if "qm9" in path.stem and find_spec("qm9pack") is None:
        pytest.skip("needs QM9: pip install 'pyg_equivariant[qm9]'")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / ".ipython"))
    work = tmp_path / "work"
    work.mkdir()
    notebook = nbformat.read(path, as_version=4)
    sources = [cell.source for cell in code_cells(notebook)]
    NotebookClient(
        notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(work)}}
    ).execute()  # raises what a cell raises
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(sources) + 1))
    assert not any(work.iterdir()), "a notebook leaves files behind"
