"""English and nine clones of it.

    python -m imbalance_jax.main --config=configs/ten_languages.py --workdir=runs/ten
    python -m imbalance_jax.main --config=configs/ten_languages.py:main=50,scale=small

main is what en1 gets, in percent: 10 is an equal part for each language, 50 leaves each clone
5.6 %; both are the reference study's. Any whole number is fine. scale is as in
configs/90_10.py.
"""

import ml_collections

from imbalance_jax import config as config_lib

CLONES = 9


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = config_lib.parse_arg(arg, scale="demo", main="10")
    if not choice.main.isdecimal() or not 0 <= int(choice.main) <= 100:
        raise ValueError(f"main={choice.main}: write a percentage in whole numbers, such as 50.")
    main = int(choice.main)
    parts = [main * CLONES] + [100 - main] * CLONES
    return config_lib.cloned(scale=choice.scale, ratio=":".join(str(part) for part in parts))
