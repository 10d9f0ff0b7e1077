"""One paper, one file. The contract tests, the command line and the table of models follow from ``__all__``."""

from pyg_equivariant.models.allegro import Allegro
from pyg_equivariant.models.cormorant import Cormorant
from pyg_equivariant.models.dimenet import DimeNet, DimeNetPlusPlus
from pyg_equivariant.models.egnn import EGNN, FrozenEGNN
from pyg_equivariant.models.eqgat import EQGAT
from pyg_equivariant.models.equiformer import Equiformer
from pyg_equivariant.models.equivariant_transformer import EquivariantTransformer
from pyg_equivariant.models.lieconv import LieResNet
from pyg_equivariant.models.mace import MACE
from pyg_equivariant.models.nequip import NequIP
from pyg_equivariant.models.painn import PaiNN
from pyg_equivariant.models.physnet import PhysNet
from pyg_equivariant.models.radial_field import RadialField
from pyg_equivariant.models.schnet import SchNet
from pyg_equivariant.models.se3_transformer import SE3Transformer
from pyg_equivariant.models.tensor_field_network import TensorFieldNetwork
from pyg_equivariant.models.tensornet import TensorNet
from pyg_equivariant.models.visnet import ViSNet

__all__ = [
    "EGNN",
    "EQGAT",
    "MACE",
    "Allegro",
    "Cormorant",
    "DimeNet",
    "DimeNetPlusPlus",
    "Equiformer",
    "EquivariantTransformer",
    "FrozenEGNN",
    "LieResNet",
    "NequIP",
    "PaiNN",
    "PhysNet",
    "RadialField",
    "SE3Transformer",
    "SchNet",
    "TensorFieldNetwork",
    "TensorNet",
    "ViSNet",
]
