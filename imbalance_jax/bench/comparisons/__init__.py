"""Other programs' training steps, timed on the sizes that ours is timed on.

Each file here is a script for an environment of its own, which need not have this package:

    python imbalance_jax/benchmarks/comparisons/nanodo.py --code=CHECKOUT < case.json

It drives the code of a checkout that lies elsewhere and holds none of that code itself. What
goes in and what comes out is the same for all:

stdin is one JSON object, the case:

    B, L, D, H, K, F, N, V   sizes; imbalance_jax/__init__.py has the key
    tied                     whether one matrix is both input embedding and head
    dtype                    of matrix products: float32, bfloat16, float16; --dtype goes first
    steps                    how many are timed
    threads                  for the programs that are told how many

The ids are random (seed 0) and wait on the device. Two steps go unmeasured, or three of a
program that compiles itself while it runs. A step's clock stops when its loss has been computed
and the weights have been updated. What the program does in its own steps belongs to the step:
its optimizer, learning rate, masks, precision and metrics stay as they are.

The last line of stdout is one JSON object:

    program, versions, device, threads, dtype
    seconds_per_step         of each timed step
    flops_per_token          6 x (weights of all matrix products, head included, input embedding
                             excluded) + 6 N H K L, of the model that really ran
    parameters, loss         the latter of the last step
    peak_bytes               of the device; null on a CPU
    notes                    where the step is not the one that was asked for, or not quite theirs

With a package or the checkout missing, one sentence on stderr says what to do; the exit status
is 2.
"""
