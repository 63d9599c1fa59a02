"""Sizes of the hybrid of modeling_hybrid.py."""

from transformers import PreTrainedConfig


class HybridConfig(PreTrainedConfig):
    """`layers` says what mixes tokens in each layer: "attention", "state" (Mamba-2) or "delta" (the delta rule)."""

    model_type = "example_hybrid"

    def __init__(
        self,
        vocab_size=320,
        hidden_size=64,
        intermediate_size=128,
        layers=("state", "attention", "delta", "attention"),
        num_heads=4,
        num_key_heads=2,
        state_heads=4,
        state_width=16,
        state_size=8,
        state_groups=2,
        delta_heads=2,
        delta_width=16,
        conv_width=4,
        num_prefix=5,
        max_position_embeddings=512,
        rope_base=10000.0,
        norm_eps=1e-6,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.layers = list(layers)
        self.num_hidden_layers = len(self.layers)
        self.num_heads = num_heads
        self.num_key_heads = num_key_heads
        self.state_heads = state_heads
        self.state_width = state_width
        self.state_size = state_size
        self.state_groups = state_groups
        self.delta_heads = delta_heads
        self.delta_width = delta_width
        self.conv_width = conv_width
        self.num_prefix = num_prefix
        self.max_position_embeddings = max_position_embeddings
        self.rope_base = rope_base
        self.norm_eps = norm_eps
        super().__init__(**kwargs)
