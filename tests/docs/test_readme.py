"""README begins with the two commands of set-up, and stays a page that is read."""

from helpers import ROOT

from imbalance_jax import config as config_lib

TEXT = (ROOT / "README.md").read_text()


def test_readme_has_the_command_that_trains_and_the_one_that_tests():
    joined = TEXT.replace("\\\n    ", "")
    trains = (
        "python3 -m venv .venv && . .venv/bin/activate && pip install -e . && "
        "python -m imbalance_jax.main --config=configs/90_10.py --workdir=runs/90_10"
    )
    tests = "python3 -m venv .venv && . .venv/bin/activate && pip install -e '.[test]' && pytest"
    assert 0 < joined.index(trains) < joined.index(tests)


def test_readme_lists_every_scale_and_config_in_200_lines():
    assert len(TEXT.splitlines()) <= 200
    assert [name for name in config_lib.SCALES if f"| `{name}` |" in TEXT] == [*config_lib.SCALES]
    configs = {file.name for file in (ROOT / "configs").glob("*.py")}
    unnamed = {name for name in configs if f"`{name}`" not in TEXT}
    assert unnamed == {"lm_transfer.py"}  # docs/transfer.md has it
    studies = {file.name for file in (ROOT / "configs" / "studies").glob("*.py")}
    assert {name for name in studies if f"`{name}`" not in TEXT and "grammar" not in name} == set()
