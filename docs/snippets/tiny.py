"""A LLaVA of a few thousand random weights, and inputs for it."""

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

IMAGE = 99  # the id of the placeholder that stands for one visual token

torch.manual_seed(0)
config = LlavaConfig(
    vision_config={
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,  # 32 x 32 pixels in patches of 8 x 8: 16 visual tokens
    },
    text_config={
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": 100,
        "eos_token_id": None,
    },
    image_token_id=IMAGE,
)
model = LlavaForConditionalGeneration(config).eval()
model.generation_config.suppress_tokens = [IMAGE]  # weights are random: it must not ask for another picture

inputs = {
    "input_ids": torch.tensor([[1, 5, 6, *[IMAGE] * 16, 7, 8]]),
    "attention_mask": torch.ones(1, 21, dtype=torch.long),
    "pixel_values": torch.randn(1, 3, 32, 32),
}
