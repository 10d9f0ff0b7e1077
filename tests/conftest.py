import os
from pathlib import Path

import pytest

collect_ignore = ["parity"]  # scripts for the peers' environments: make parity


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real data that the project does not ship."""
    folder = os.environ.get("PYG_EQUIVARIANT_DATA")
    if not folder:
        pytest.skip("needs real data: set PYG_EQUIVARIANT_DATA to the folder that holds it")
    return Path(folder)
