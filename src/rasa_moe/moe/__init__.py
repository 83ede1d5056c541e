"""Everything that knows the inside of mixture-of-experts models: find, record, train and patch experts."""

from rasa_moe.moe.attention import LowRankAttention, attention_projections, attention_weights
from rasa_moe.moe.checkpointing import checkpointed
from rasa_moe.moe.directories import export_checkpoint
from rasa_moe.moe.families import Scoring
from rasa_moe.moe.fingerprints import sha256_tensor
from rasa_moe.moe.interception import silence
from rasa_moe.moe.layers import ExpertId, MoeLayer, MoeMap, discover
from rasa_moe.moe.loading import load_model, loading_notes
from rasa_moe.moe.low_bit import low_bit_experts
from rasa_moe.moe.patch import ExpertPatch, make_patch
from rasa_moe.moe.router_tensors import router_tensor_names
from rasa_moe.moe.routers import TrainableRouters, trainable_routers
from rasa_moe.moe.routing import count_activations, record, replay, watch_routers
from rasa_moe.moe.scoring import routing_distribution
from rasa_moe.moe.shifting import can_be_entered, entered_with, kept_entry, shifted
from rasa_moe.moe.shortened import call_for_routing, logits_at
from rasa_moe.moe.slices import ExpertSlices
from rasa_moe.moe.snapshots import put_back, snapshot
from rasa_moe.moe.steering import steer
from rasa_moe.moe.swap import (
    Piece,
    Swap,
    copies,
    differing,
    named_tensors,
    pieces_of,
    put_back_after,
    swapped,
)
from rasa_moe.moe.traces import ActivationCounts, RoutedCall, RouterWatch, RoutingTrace

__all__ = [
    "ActivationCounts",
    "ExpertId",
    "ExpertPatch",
    "ExpertSlices",
    "LowRankAttention",
    "MoeLayer",
    "MoeMap",
    "Piece",
    "RoutedCall",
    "RouterWatch",
    "RoutingTrace",
    "Scoring",
    "Swap",
    "TrainableRouters",
    "attention_projections",
    "attention_weights",
    "call_for_routing",
    "can_be_entered",
    "checkpointed",
    "copies",
    "count_activations",
    "differing",
    "discover",
    "entered_with",
    "export_checkpoint",
    "kept_entry",
    "load_model",
    "loading_notes",
    "logits_at",
    "low_bit_experts",
    "make_patch",
    "named_tensors",
    "pieces_of",
    "put_back",
    "put_back_after",
    "record",
    "replay",
    "router_tensor_names",
    "routing_distribution",
    "sha256_tensor",
    "shifted",
    "silence",
    "snapshot",
    "steer",
    "swapped",
    "trainable_routers",
    "watch_routers",
]
