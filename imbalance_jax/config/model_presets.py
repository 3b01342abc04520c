"""What the presets of `config.model` set."""

GPT2 = {
    "position": "learned",
    "norm": "layer",
    "norm_place": "before",
    "feed_forward": "gelu",
    "bias": "on",
    "qk_norm": "off",
    "embed_scale": "sqrt",
}
_LLAMA = GPT2 | {
    "position": "rope",
    "norm": "rms",
    "feed_forward": "swiglu",
    "bias": "off",
    "embed_scale": "none",
}
PRESETS = {"gpt2": GPT2, "llama": _LLAMA, "modern": _LLAMA | {"qk_norm": "on"}}
