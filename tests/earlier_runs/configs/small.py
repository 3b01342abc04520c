"""Two clones of a small English text, three parts to one."""

from imbalance_jax import config as config_lib


def get_config(arg=""):
    config = config_lib.cloned(scale="demo", ratio="3:1")
    config.steps, config.batch_size, config.log_every = 12, 8, 1
    source = config.sources.en
    source.kind = "files"
    for split in ("train", "validation", "test"):
        source[split] = f"text/en.{split}.jsonl"
    source.tokenizer.vocab_size = 288
    config.model.update(L=16, D=4, H=2, K=2, F=8, N=1)
    config.evaluation.update(every=4, max_windows=8, stride=16, max_test_windows=16)
    config.evaluation.alignment.every = 0
    config.checkpoint.update(every=6, keep=1)
    return config
