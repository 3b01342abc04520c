# %% [markdown]
# # Read a run and a study in Python
#
# The lines `# %%` begin the cells of a notebook. Editors such as VS Code run them one by one.
# In a terminal, from the folder that holds the run and the study:
#
#     pip install pandas
#     python docs/examples/read_results.py
#
# These two commands make what it reads:
#
#     python -m imbalance_jax.main --config=configs/90_10.py --workdir=runs/90_10
#     python -m imbalance_jax.study run --config=configs/studies/grammar.py:parts=none --pack=3

# %%
import numpy as np
import pandas as pd

import imbalance_jax

RUN = "runs/90_10"
STUDY = "studies/grammar"
TEXTS = (
    "Returns the sum of the values.",
    "The first argument is the name of the file.",
)

# %% [markdown]
# ## Load a run
#
# `load` reads the newest checkpoint. `run.config` has every field of the run's config.

# %%
run = imbalance_jax.load(RUN)
first, second, *_ = run.config.tags
print(run)

# %% [markdown]
# ## Score a sentence in each language
#
# `loss` returns the loss of each id in nats. Its mean is the loss per token. For a clone the text
# is the same, and only the ids differ.

# %%
for language in run.config.tags:
    nats = run.loss(TEXTS[0], language)
    print(f"{language}  {nats.mean():.3f} nats per token, perplexity {np.exp(nats.mean()):,.1f}")

# %% [markdown]
# ## Compare hidden states
#
# Layer 0 is the embedding and the last layer is the output of the final norm. States of all
# languages lie in a narrow cone, so a cosine says little by itself. Compare it with the cosine of
# two texts that say different things. docs/alignment.md has the measures that a run records.


# %%
def compute_mean_states(text: str, language: str) -> np.ndarray:
    """Returns the mean state of a text in every layer: (N + 2, D)."""
    ids = run.encode(text, language)[: run.config.model.L]  # as many as the model has positions
    states_NLD = run.hidden_states(ids)
    return np.asarray(states_NLD, np.float64).mean(axis=1)


def compute_cosines(a_ND: np.ndarray, b_ND: np.ndarray) -> np.ndarray:
    norms_N = np.linalg.norm(a_ND, axis=-1) * np.linalg.norm(b_ND, axis=-1)
    return np.sum(a_ND * b_ND, axis=-1) / norms_N


here = compute_mean_states(TEXTS[0], first)
same_text = compute_cosines(here, compute_mean_states(TEXTS[0], second))
other_text = compute_cosines(here, compute_mean_states(TEXTS[1], second))
cosines = pd.DataFrame({"same text": same_text, "another text": other_text})
cosines.index.name = "layer"
print(cosines.round(3))

# %% [markdown]
# ## Read a study's table
#
# `table.csv` has a row for each language of each run: loss, tokens, steps, seed and more. A cell is
# a config that was run with several seeds.

# %%
table = pd.read_csv(f"{STUDY}/table.csv")
losses = table.groupby(["cell", "language"])["loss"].agg(["mean", "std", "count"])
print(losses.round(3))
