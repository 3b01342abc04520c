"""The part of a run's page on what its languages have in common."""

import itertools
import json
import math
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from made_runs import CLONES, make_run, page_of, structure_of, words_of

from imbalance_jax.report import record
from imbalance_jax.report.alignment.section import render_alignment_section
from imbalance_jax.report.alignment.training_curves import average_logged_blocks
from imbalance_jax.runs.run_directory import RunDirectory

N = 3  # of make_run
ROWS = [
    *(f"attn {name}.{kind}" for name in "KOQV" for kind in ("bias", "weight")),
    *(f"ln{number}.{kind}" for number in (1, 2) for kind in ("bias", "weight")),
    *(f"mlp {name}.{kind}" for name in ("fc", "proj") for kind in ("bias", "weight")),
]
TEN = {f"en{number}": 12 - number for number in range(1, 11)}


def bins(value: str) -> dict[str, list[float]]:
    return {"low": [1.0, 10.0], "high": [10.0, 100.0], "pieces": [4, 9], value: [0.02, 0.31]}


def scores(name: str, error: float = 0.01) -> dict[str, list[float]]:
    cosine = [0.1 * layer for layer in range(N + 2)]
    shuffled = [0.05 * layer for layer in range(N + 2)]
    return {
        name: cosine,
        f"{name}_shuffled": shuffled,
        f"{name}_excess": [x - y for x, y in zip(cosine, shuffled, strict=True)],
        f"{name}_error": [error] * (N + 2),
    }


def hidden(positions: bool = True) -> dict[str, Any]:
    whole = {"cka_debiased": [0.9] * (N + 2), "cka_debiased_shuffled": [0.02] * (N + 2)}
    whole |= {f"centred_retrieval_{way}": [0.5] * (N + 2) for way in ("forth", "back")}
    compared = scores("cosine") | scores("centred")
    found: dict[str, Any] = {"sequences": 64}
    found["sentences"] = compared | scores("procrustes") | whole | {"chance": 1 / 64}
    found["matched"] = compared
    if positions:
        found["positions"] = compared | scores("procrustes")
    return found


def cell(row: int, layer: int) -> float:
    """Returns a cosine that no other cell has, in two decimals."""
    return (row * N + layer - 24) / 100


def gradients() -> dict[str, Any]:
    single = {"same_content": 0.1, "other_content": 0.05, "within_a": 0.2, "within_b": 0.3}
    cells = [[cell(row, layer) for layer in range(N)] for row in range(16)]
    return {
        "sequences": 64,
        "rows": ROWS,
        "per_pair": cells,
        "mean": 0.123,
        "mean_error": 0.004,
        "mean_with_key_bias": 0.117,
        "batches": {"1": single, "8": single | {"halves_a": 0.2}, "64": {"same_content": 0.4}},
        "corrected": [[None, *row[1:]] for row in cells],
        "corrected_mean": 0.456,
        "corrected_halves": [0.4, 0.5],
    }


def result(a: str, b: str, positions: bool = True) -> dict[str, Any]:
    table = {"cosine": 0.4, "between": 0.1, "by_own_frequency": bins("cosine")}
    gain = {"seen": 4.0, "unseen": 4.25, "gain": 0.25, "gain_error": 0.0625}
    return {
        "languages": [a, b],
        "sequences": 64,
        "embed_in": table,
        "embed_out": table,
        "hidden": hidden(positions),
        "gradients": gradients(),
        "prefix": {f"{a} before {b}": {"sequences": 64, "related": 4.0, "gain": -0.012}},
        "seen": {
            f"{a} seen, {b} scored": {"seen": 9, "unseen": 8, "in_second": gain},
            f"{b} seen, {a} scored": {"skipped": "the languages draw from different texts"},
        },
    }


def alignment(pairs: Mapping[str, Any], tags: Mapping[str, int] = CLONES) -> dict[str, Any]:
    positions = [0.5 / (1 + place) for place in range(128)]
    leak = {"by_position": positions, "by_own_frequency_read": bins("mean")}
    norms = {tag: 0.5 + number for number, tag in enumerate(tags)}
    return {
        "split": "test",
        "pairs": pairs,
        "skipped": {},
        "leak": {tag: {"windows": 4, "leak": leak} for tag in tags},
        "probe": {
            "chance": 1 / len(tags),
            "accuracy": [0.8] * (N + 2),
            "control": [0.6] * (N + 2),
            "variance_explained": [0.1] * (N + 2),
            "scored_on": 100,
        },
        "optimizer": {"embed_norm": norms, "gradient_share": norms},
    }


def evaluate(run: RunDirectory, found: Mapping[str, Any]) -> RunDirectory:
    run.write_json("evaluation.json", {**run.read_json("evaluation.json"), "alignment": found})
    return run


def log(run: RunDirectory, pairs: list[str], tags: Mapping[str, int] = CLONES) -> RunDirectory:
    for step in (0, 50, 100):
        found: dict[str, float] = {"align/every": 50, "align/share": 0.02, "time/align": 0.1 * step}
        for pair in pairs:
            for name in ("embed_in", "embed_in_between", "embed_out", "gradient"):
                found[f"align/{name}/{pair}"] = step / 200
            for layer in range(N + 2):
                found[f"align/hidden/{pair}/{layer}"] = 0.7 + layer / 100
                found[f"align/hidden_shuffled/{pair}/{layer}"] = 0.6
                found[f"align/hidden_centred/{pair}/{layer}"] = 0.3
                found[f"align/retrieval/{pair}/{layer}"] = 0.2
            found[f"align/retrieval_chance/{pair}"] = 1 / 32
        for tag in tags:
            found[f"align/gradient_share/{tag}"] = 1 / len(tags)
        run.log(step, found)
    return run


def plain(path: pathlib.Path, ratio: Mapping[str, int] = CLONES) -> RunDirectory:
    return make_run(path, ratio, steps=100, log_every=100)


def section_of(run: RunDirectory) -> str:
    """Returns the section alone, which is faster than all of the page."""
    return render_alignment_section(record.read_run_contents(run))


def not_finite(part: str) -> list[str]:
    return re.findall(r"\b(?:nan|NaN|None|inf)\b|∞", part)


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> RunDirectory:
    run = plain(tmp_path_factory.mktemp("runs") / "run")
    return log(evaluate(run, alignment({"en1-en2": result("en1", "en2")})), ["en1-en2"])


@pytest.fixture(scope="module")
def part(complete) -> str:
    return section_of(complete)


def test_a_run_that_measured_nothing_has_no_such_section(tmp_path):
    assert section_of(plain(tmp_path / "run")) == ""


def test_every_figure_says_how_to_read_it(part):
    drawings = re.findall(r"<svg[^>]*>", part)
    # 7 over training, 6 by layer, 3 of gradients, 2 by frequency, 3 of telling apart.
    assert len(drawings) == part.count("<figcaption>") == 7 + 6 + 3 + 2 + 3
    for drawing in drawings:
        assert 'role="img"' in drawing and re.search(r'aria-label="[^"]{20,}"', drawing)
    captions = re.findall(r"<figcaption><b>.*?</b> (.*?)</figcaption>", part)
    assert all(len(caption) > 40 for caption in captions)


def test_the_page_has_the_section_is_well_formed_and_always_the_same(complete, part):
    text = page_of(complete)
    assert part in text
    structure = structure_of(text)
    assert not structure.wrong and not structure.open
    assert len(structure.ids) == len(set(structure.ids))
    assert len(text.encode()) < 400_000
    # Seconds, where the time went.
    assert "alignment 10.0" in words_of(text)


def test_the_table_of_pairs_has_means_over_the_blocks(part):
    words = words_of(part)
    # Blocks are layers 1, 2 and 3: an excess of 0.05, 0.1 and 0.15.
    row = (
        "en1-en2 64 +0.300 +0.100 +0.100 +0.100 +0.900 50 % (1.56 %) +0.123 ± 0.004 +0.456 ± 0.050"
    )
    assert row in words
    assert f"The test split after step {100}" in words


def test_what_was_logged_is_drawn_as_means_over_the_blocks(complete, part):
    run = record.read_run_contents(complete)
    curve = average_logged_blocks(run, "en1-en2", "hidden", "hidden_shuffled")
    assert curve.steps == [0, 50, 100]
    assert curve.values == pytest.approx([0.12] * 3)
    words = words_of(part)
    assert "Measured every 50 steps in the end, for 2 % of the run's time." in words


def test_the_heat_map_has_the_value_of_every_parameter_and_layer_in_its_place(part):
    drawing = re.search(r'<svg class="map".*?</svg>', part, flags=re.S)[0]
    texts = {
        (float(x), float(y)): text
        for x, y, text in re.findall(r'<text [^>]*x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)<', drawing)
    }
    names = {text: y for (_, y), text in texts.items() if text in ROWS}
    assert sorted(names, key=names.__getitem__) == ROWS
    for row, name in enumerate(ROWS):
        beside = {x: text for (x, y), text in texts.items() if abs(y - names[name]) < 2}
        expected = [name, *(f"{cell(row, layer):.2f}".replace("-", "−") for layer in range(N))]
        assert [beside[x] for x in sorted(beside)] == expected
    # All cells but those of the keys' bias and one of 0 have a colour, and so have those of the
    # scale, but for its middle.
    assert len(re.findall(r"fill: var\(--(?:warm|cold)\)", drawing)) == 15 * N - 1 + 8


def test_gains_stand_with_their_errors_and_what_was_skipped_with_its_reason(part):
    words = words_of(part)
    assert "en1 seen, en2 scored 9 8 4.000 4.250 +0.250 ± 0.062 –" in words
    reason = "not measured, because the languages draw from different texts."
    assert f"en2 seen, en1 scored: {reason}" in words
    assert "en1 before en2 64 – – 4.000 −0.012 –" in words


def test_only_an_evaluation_or_only_a_log_is_enough(tmp_path):
    evaluated = evaluate(plain(tmp_path / "a"), alignment({"en1-en2": result("en1", "en2")}))
    words = words_of(section_of(evaluated))
    assert "Nothing of it was logged while the run trained." in words and "By layer" in words
    logged = log(plain(tmp_path / "b"), ["en1-en2"])
    words = words_of(section_of(logged))
    assert "evaluation.json has no alignment." in words and "By layer" not in words
    assert "Hidden states, excess." in words


def test_languages_without_corresponding_positions_are_shown_as_matched(tmp_path):
    found = result("en1", "en2", positions=False)
    found["hidden"]["without_shared"] = hidden(positions=False)
    run = evaluate(plain(tmp_path / "run"), alignment({"en1-en2": found}))
    part = section_of(run)
    words = words_of(part)
    assert "In en1-en2 positions are first assigned to each other" in words
    assert "The same without the positions whose id both languages have" in words
    assert not structure_of(part).wrong


def without_numbers(tree: Any) -> Any:
    """Returns JSON with null for every number."""
    if isinstance(tree, dict):
        return {name: without_numbers(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [without_numbers(value) for value in tree]
    return None if isinstance(tree, (int, float)) else tree


def without(*path: str) -> Callable[[Any], Any]:
    """Returns a function that takes what lies at a path out of a result."""

    def change(tree: Any) -> Any:
        inner = tree
        for name in path[:-1]:
            inner = inner[name]
        del inner[path[-1]]
        return tree

    return change


def test_any_part_of_a_pair_may_be_absent_beside_others(tmp_path):
    changes = [
        lambda _: {},
        lambda _: {"languages": ["en1", "en3"], "hidden": {"sequences": 2}, "gradients": None},
        without("hidden", "sentences"),
        without("hidden", "positions", "cosine_error"),
        without("gradients", "batches"),
        without("gradients", "corrected"),
    ]
    tags = {"en1": 4, "en2": 3, "en3": 2, "en4": 1}
    names = list(itertools.combinations(tags, 2))
    pairs = {
        f"{a}-{b}": change(result(a, b)) for (a, b), change in zip(names, changes, strict=True)
    }
    part = section_of(evaluate(plain(tmp_path / "run", tags), alignment(pairs, tags)))
    assert all(f'<th scope="row">{pair}</th>' in part for pair in pairs)
    assert part.count("Gradients of") == 2 and not_finite(part) == []
    assert not structure_of(part).wrong


@pytest.mark.parametrize("nothing", [{}, {"hidden": {"sequences": 2}, "gradients": None}])
def test_a_pair_of_which_nothing_is_known_has_a_row_of_dashes(tmp_path, nothing):
    found = {"pairs": {"en1-en2": nothing}}
    part = section_of(evaluate(plain(tmp_path / "run"), found))
    assert "en1-en2" + 9 * " –" in words_of(part) and "<svg" not in part


def test_any_number_may_be_null(tmp_path):
    found = without_numbers(alignment({"en1-en2": result("en1", "en2")}))
    part = section_of(evaluate(plain(tmp_path / "run"), found))
    assert "en1-en2" + 9 * " –" in words_of(part)
    # A map of dashes alone still has its rows.
    assert set(re.findall(r"<svg[^>]*class=\"(\w+)", part)) <= {"map"}
    assert not_finite(part) == [] and not structure_of(part).wrong


def test_single_nulls_in_lists_and_values_that_are_not_finite_leave_gaps(tmp_path):
    found = alignment({"en1-en2": result("en1", "en2")})
    inside = found["pairs"]["en1-en2"]
    inside["hidden"]["positions"]["cosine"][1] = None
    inside["gradients"]["per_pair"][2][0] = math.nan
    inside["embed_in"]["by_own_frequency"]["cosine"][0] = None
    found["leak"]["en2"]["leak"]["by_position"][0] = 0.0
    run = evaluate(plain(tmp_path / "run"), json.loads(json.dumps(found)))
    run.log(50, {"align/gradient/en1-en2": math.nan})
    part = section_of(run)
    assert not_finite(part) == [] and "Cosine. " in words_of(part)


def test_of_45_pairs_the_figures_show_six_and_the_tables_all(tmp_path):
    tags = list(TEN)
    pairs = {f"{a}-{b}": result(a, b) for i, a in enumerate(tags) for b in tags[i + 1 :]}
    found = alignment(pairs, TEN)
    found["skipped"] = {"en1-xx": "en1-xx is not measured: nothing says the same in both."}
    run = log(evaluate(plain(tmp_path / "run", TEN), found), [*pairs], TEN)
    part = section_of(run)
    words = words_of(part)
    shown = "en1-en2, en1-en3, en1-en4, en1-en5, en1-en6, en1-en7"
    assert f"The figures show the first 6 of 45 pairs: {shown}. The other 39 are left" in words
    assert "en1-xx is not measured" in words
    assert all(f'<th scope="row">{pair}</th>' in part for pair in pairs)
    # Two maps for each of six pairs; those of four pairs are folded away.
    assert part.count('<svg class="map"') == 12
    folded = re.findall(r"<summary>(.*?)</summary>", part)
    assert sum(title.startswith("Gradients of") for title in folded) == 4
    structure = structure_of(part)
    assert not structure.wrong and len(structure.ids) == len(set(structure.ids))
    assert len(part.encode()) < 700_000


def test_of_a_language_alone_it_is_said_that_there_is_no_pair(tmp_path):
    alone = {"en1": 1}
    found = alignment({}, alone) | {"probe": {}}
    said = words_of(section_of(evaluate(log(plain(tmp_path, alone), [], alone), found)))
    assert "The run has one language, and so no pair of languages to compare" in said
    assert "raw cosine" not in said and "Nothing of it was logged" not in said
    assert "What the optimizer sees" in said


def test_markup_in_what_was_measured_stays_text(tmp_path):
    evil = '<img src="x">&$x^2$'
    found = alignment({evil: result(evil, evil)})
    found["skipped"] = {evil: evil}
    found["pairs"][evil]["gradients"]["rows"] = [evil] * 16
    part = section_of(evaluate(plain(tmp_path / "run"), found))
    assert "<img" not in part and evil in words_of(part)
    assert not structure_of(part).wrong


def test_a_frequency_axis_says_whose_tokens_it_counts(tmp_path):
    found = alignment({"en1-en2": result("en1", "en2")})
    words = words_of(section_of(evaluate(plain(tmp_path / "now"), found)))
    assert "how often the rarer of the two was trained on in its own language" in words
    # Results from before languages were counted apart are shown as what they are.
    for where in ("embed_in", "embed_out"):
        table = dict(found["pairs"]["en1-en2"][where])
        table["by_frequency"] = table.pop("by_own_frequency")
        found["pairs"]["en1-en2"][where] = table
    for tag in found["leak"]:
        leak = dict(found["leak"][tag]["leak"])
        leak["by_frequency_read"] = leak.pop("by_own_frequency_read")
        found["leak"][tag] = {"leak": leak}
    words = words_of(section_of(evaluate(plain(tmp_path / "before"), found)))
    assert "trained on in its own language" not in words
    assert (
        words.count("trained on in all languages of its text together") == 6
    )  # each caption, and each axis


def test_retrieval_stands_beside_chance_wherever_it_is_shown(part, tmp_path):
    words = words_of(part)
    assert "thin lines are chance, 3.12 %" in words  # one in 32, over training
    assert "pale lines are chance, 1.56 %" in words  # one in 64, by layer
    # A run that has not written it says what it must have been.
    early = log(evaluate(plain(tmp_path / "run"), {"pairs": {}}), ["en1-en2"])
    kept = [json.dumps(record) for record in early.metrics()]
    (early.path / "metrics.jsonl").write_text(
        "\n".join(line.replace("retrieval_chance", "other") for line in kept) + "\n"
    )
    pairs = early.config().evaluation.alignment.pairs
    assert f"by chance it is one in {pairs}" in words_of(section_of(early))
