"""Sizes of the model of modeling_gated_norm.py."""

from transformers import PreTrainedConfig


class GatedNormConfig(PreTrainedConfig):
    model_type = "example_gated_norm"

    def __init__(
        self,
        vocab_size=320,
        hidden_size=64,
        num_hidden_layers=2,
        num_heads=4,
        max_position_embeddings=256,
        norm_eps=1e-5,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_heads = num_heads
        self.max_position_embeddings = max_position_embeddings
        self.norm_eps = norm_eps
        super().__init__(**kwargs)
