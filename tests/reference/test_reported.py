"""What the reference study reported is there as facts, whole, and found by figure."""

import collections
import csv
import io
import math
import types

import numpy as np
import pytest

from imbalance_jax.analysis import transfer_results
from imbalance_jax.reference import paper_page, paper_tables, ratio_laws
from imbalance_jax.reference import reported as reference
from imbalance_jax.reference.catalogue import FIGURES
from imbalance_jax.reference.paper_results import collect_study_results, make_law_results
from imbalance_jax.reference.reported import PaperResult


def test_every_group_has_as_many_rows_as_the_specification_counts():
    groups = collections.Counter(row.figure for row in reference.read_reference_results())
    assert sum(groups.values()) == 2035
    assert groups == {
        "Table 1": 55,
        "runs.csv display (not in a figure)": 24,
        "Figure 1 left": 32,
        "Figure 1 right": 12,
        "Figure 2/Figure 9": 72,
        "Table 2": 36,
        "Table 3": 60,
        "Figure 3": 110,
        "Figure 4/Figure 10": 84,
        "Table 4": 72,
        "Figure 5": 73,
        "Figure 6": 48,
        "Figure 7": 186,
        "Figure 8": 13,
        "Figure 11": 386,
        "Figure 12": 386,
        "Figure 13": 386,
    }


def test_no_two_rows_say_the_value_of_the_same_thing():
    keys = [
        (r.figure, tuple(r.setting.items()), r.metric) for r in reference.read_reference_results()
    ]
    assert len(set(keys)) == len(keys)


def test_an_interval_is_the_value_with_its_uncertainty_on_both_sides():
    row = next(row for row in reference.read_reference_results() if row.value == 22.18)
    assert (row.figure, row.metric, row.values) == ("Figure 1 left", "ppl_EN1", ())
    assert (row.low, row.high) == pytest.approx((22.14, 22.22))


def test_rows_of_two_figures_are_found_by_either():
    rows = reference.read_reference_results()
    assert reference.select_figure_results(rows, "Figure 2") == reference.select_figure_results(
        rows, "Figure 9"
    )
    assert len(reference.select_figure_results(rows, "Figure 10")) == 84


@pytest.mark.parametrize(
    ("text", "number"),
    [("2.4x (2.87153e9 tok)", 2.4), ("0.003 (hidden)", 0.003), ("5.0e-07", 5e-7)],
)
def test_a_number_is_read_from_the_beginning_of_a_text(text, number):
    assert reference.parse_leading_number(text) == number


def test_tokens_seen_are_unknown_where_a_row_is_of_no_run():
    law = next(row for row in reference.read_reference_results() if row.metric == "law_a")
    assert math.isnan(law.tokens)


# Tables.


def test_table_1_has_its_rows_in_the_order_of_the_specification():
    table = paper_tables.make_paper_table("Table 1", reference.read_reference_results())
    column = dict(zip(table.header, zip(*table.rows, strict=True), strict=True))
    order = list(zip(column["split"], column["data"], column["schedule"], strict=True))
    assert order == [
        ("100/0", "0.1x", "none"),
        ("100/0", "0.5x", "none"),
        ("100/0", "1x", "none"),
        ("50/50", "1x", "none"),
        ("90/10", "1x", "none"),
        ("10x10 (p_clone=0.9)", "1x", "none"),
        ("50 + 9x5.56 (p_clone=0.5)", "1x", "none"),
        ("50/50 overall", "1x", "0.1_0.9"),
        ("50/50 overall", "1x", "0.0_1.0"),
        ("50/50 overall", "2x", "0.1_0.9"),
        ("90/10", "2x", "none"),
        ("50/50", "2x", "none"),
        ("50/50 overall", "3x", "0.1_0.9"),
        ("90/10", "3x", "none"),
        ("50/50", "3x", "none"),
    ]
    assert [cell and cell.value for cell in column["TEff EN2"]][3:5] == [0.885111, 2.076345]
    page_table = paper_tables.make_page_table(table)
    assert any("9.15e10" in cell for row in page_table.rows for cell in row)


def test_tables_of_layers_have_a_row_for_each_and_the_difference():
    table = paper_tables.make_paper_table("Table 4", reference.read_reference_results())
    assert table.header[:4] == ("layer", "disjoint 50/50", "disjoint 90/10", "disjoint difference")
    assert [row[0] for row in table.rows] == [str(layer) for layer in range(1, 13)]
    assert [table.rows[0][column].value for column in (1, 2, 4, 5)] == [0.68, 0.71, 0.73, 0.78]


def test_rows_of_a_study_stand_in_the_reported_order_beside_what_was_reported():
    reported = reference.select_figure_results(reference.read_reference_results(), "Table 1")
    study = [
        PaperResult(row.figure, row.setting, row.metric, row.value + 1, values=(row.value + 1,) * 3)
        for row in reversed(reported)
    ]
    table = paper_tables.make_paper_table("Table 1", study, reported)
    assert table.header[5:7] == ("PPL EN1", "PPL EN1 reported")
    first = next(csv.DictReader(io.StringIO(paper_tables.render_table_csv(table))))
    assert first["data"] == "0.1x"
    assert float(first["PPL EN1"]) - float(first["PPL EN1 reported"]) == pytest.approx(1)
    assert len(first["PPL EN1 seeds"].split()) == 3


def test_the_difference_of_a_study_is_worked_out_where_it_is_not_given():
    rows = [
        PaperResult(
            "Table 2", {"split": split, "vocab": "cloned", "layer": "1"}, "hidden_cossim", value
        )
        for split, value in (("50/50", 0.25), ("90/10", 0.75))
    ]
    table = paper_tables.make_paper_table("Table 2", rows)
    assert table.header == ("layer", "50/50", "90/10", "difference")
    assert table.rows[0][3].value == 0.5


# A study's results.


def make_table(losses, figures, reference_setting=None):
    """Returns what stands in for a table of a cell r90_10, with a run for each pair of losses."""
    runs, observations = {}, []
    for seed, pair in enumerate(losses):
        name = f"r90_10-{seed}"
        spec = types.SimpleNamespace(
            cell="r90_10", figures=figures, reference=reference_setting or {}
        )
        runs[name] = types.SimpleNamespace(spec=spec, state=types.SimpleNamespace(state="done"))
        for tag, share, loss in zip(("en1", "en2"), (0.9, 0.1), pair, strict=True):
            observations.append(
                types.SimpleNamespace(
                    run=name,
                    language=tag,
                    source="en",
                    size="3x24",
                    tokens=2e6 * share,
                    share=share,
                    ppl=math.exp(loss),
                )
            )
    alignments = []
    return types.SimpleNamespace(
        name="pico",
        unit_tokens=1_000_000,
        runs=runs,
        observations=observations,
        alignments=alignments,
    )


def test_a_studys_cell_becomes_a_row_with_its_seeds_and_geometric_mean():
    table = make_table([(3.0, 4.0), (3.2, 4.4), (3.4, 4.2)], ["Figure 1 left"])
    worth = types.SimpleNamespace(teff=2.0, mlte=4e5, mlpe=math.nan)
    rows = collect_study_results(
        table,
        {("r90_10-0", "en2"): worth},
        interval=lambda values: (min(values), max(values)),
    )
    found = {row.metric: row for row in rows}
    assert set(found) == {"ppl_EN1", "ppl_EN2", "teff_EN2", "mlte_EN2"}
    assert found["ppl_EN1"].value == pytest.approx(math.exp(3.2))
    assert found["ppl_EN1"].values == pytest.approx([math.exp(x) for x in (3.0, 3.2, 3.4)])
    assert (found["ppl_EN2"].low, found["ppl_EN2"].high) == pytest.approx(
        (math.exp(4.0), math.exp(4.4))
    )
    assert math.isnan(found["teff_EN2"].low) and found["teff_EN2"].values == (2.0,)
    setting = found["ppl_EN2"].setting
    assert setting["split"] == "90/10" and setting["p_EN2"] == "0.1" and setting["tokens"] == "2x"
    assert (found["mlte_EN2"].tokens, found["mlte_EN2"].unit_tokens) == (2, 1_000_000)


def test_the_setting_that_a_study_gives_comes_before_what_its_runs_say():
    table = make_table([(3.0, 4.0)], ["Table 1", "Figure 2/Figure 9"], {"model": "small"})
    rows = collect_study_results(table, {})
    assert [row.figure for row in rows] == ["Table 1"] * 2 + ["Figure 2/Figure 9"] * 2
    assert {row.setting["model"] for row in rows} == {"small"}


def test_what_was_measured_of_states_gradients_and_embeddings_becomes_rows():
    table = make_table([(3.0, 4.0)], ["Table 2", "Figure 11", "Figure 6", "Figure 7"])
    pair = {
        "positions_correspond": True,
        "hidden": {"positions": {"cosine": [0.0, 0.1, 0.2, 0.3, 1.0]}},
        "gradients": {
            "rows": ["attn K.bias", "mlp fc.weight"],
            "per_pair": [[0.0, 0.1, 0.2], [0.3, 0.4, 0.5]],
            "mean_with_key_bias": 0.25,
        },
        "embed_in": {
            "cosine_all_ids": 0.5,
            "all_pairs": 0.1,
            "by_frequency": {"low": [1.0, 10**0.25], "high": [10**0.25, 10**0.5], "cosine": [0, 1]},
        },
    }
    evaluations = {"r90_10-0": {"alignment": {"pairs": {"en1-en2": pair}}}}
    rows = collect_study_results(table, {}, evaluations=evaluations)
    hidden = [(r.setting["layer"], r.value) for r in rows if r.metric == "hidden_cossim"]
    # The blocks' layers, without the embedding's output and the final norm.
    assert hidden == [("1", 0.1), ("2", 0.2), ("3", 0.3)]
    cells = {r.setting["param"] for r in rows if r.metric == "gradient_cossim"}
    assert cells == {"attn.linear_K.bias", "mlp.c_fc.weight"}
    assert [r.value for r in rows if r.metric == "gradient_cossim_mean"] == [0.25]
    assert [r.setting["pairs"] for r in rows if r.figure == "Figure 6"] == ["clones", "all pairs"]
    edges = [(r.setting["freq_lo"], r.setting["freq_hi"]) for r in rows if r.figure == "Figure 7"]
    assert edges == [("10^0", "10^0.25"), ("10^0.25", "10^0.5")]


def test_word2vec_is_a_model_of_its_own_in_the_figure_of_embeddings():
    table = make_table([(3.0, 4.0)], ["Figure 6"])
    measured = {"cosine_all_ids": -0.1, "all_pairs": 0.05}
    word2vec = {
        "skipgram": {"pairs": {"en1-en2": {"input": {"cosine_all_ids": 9.0}}}},
        "cbow": {"pairs": {"en1-en2": {"input": measured, "output": {"all_pairs": 0.9}}}},
    }
    deep = {"en1-en2": {"embed_in": {"cosine_all_ids": 0.5}}}
    evaluation = {"alignment": {"pairs": deep}, "word2vec": word2vec}
    rows = collect_study_results(table, {}, evaluations={"r90_10-0": evaluation})
    keys = ("embedding", "pairs")
    shallow = {
        tuple(row.setting[key] for key in keys): row.value
        for row in rows
        if row.setting["model"] == "word2vec"
    }
    expected = {("input", "clones"): -0.1, ("input", "all pairs"): 0.05}
    assert shallow == expected | {("output", "all pairs"): 0.9}
    panels = FIGURES["Figure 6"].panels(rows)
    assert [panel.title.rpartition(", ")[2] for panel in panels][1] == "word2vec"


def test_accuracies_after_fine_tuning_in_the_first_clone_are_those_of_figure_1():
    table = make_table([(3.0, 4.0)], ["Figure 1 right"])

    def row(accuracy):
        right = np.arange(100) < round(100 * accuracy)
        return transfer_results.estimate_accuracy(right[None], range(100), majority=0.5)

    tasks = {
        name: {"languages": {"en1": row(0.7), "en2": row(0.5 + 0.01 * place)}}
        for place, name in enumerate(transfer_results.GLUE)
    }
    # Another language and another protocol are not what was reported.
    others = {"intended": {"en1": tasks}, "reference": {"en2": tasks, "en1": tasks}}
    rows = collect_study_results(table, {}, evaluations={"r90_10-0": {"transfer": others}})
    found = {row.metric: row.value for row in rows}
    expected = {"glue_acc_EN1": 0.7, "glue_acc_majority": 0.5, "glue_acc_EN2": 0.55}
    assert found == pytest.approx(expected)
    (panel,) = FIGURES["Figure 1 right"].panels(rows)
    assert panel.title == "mean GLUE accuracy, trained on EN1 alone"
    # Those of other tasks are no GLUE.
    some = {"reference": {"en1": {"rte": tasks["rte"]}}}
    rows = collect_study_results(table, {}, evaluations={"r90_10-0": {"transfer": some}})
    assert {row.metric for row in rows} >= {"transfer_acc_EN1", "transfer_acc_EN2"}
    (panel,) = FIGURES["Figure 1 right"].panels(rows)
    assert panel.title == "mean accuracy of rte"


def test_hidden_states_are_those_logged_where_there_is_no_evaluation():
    table = make_table([(3.0, 4.0)], ["Table 2"])
    table.alignments = [
        types.SimpleNamespace(
            run="r90_10-0",
            pair="en1-en2",
            measure="hidden",
            layer=layer,
            layers=5,
            value=layer / 10,
        )
        for layer in range(5)
    ]
    rows = collect_study_results(table, {})
    assert [(row.setting["layer"], row.value) for row in rows] == [
        ("1", 0.1),
        ("2", 0.2),
        ("3", 0.3),
    ]


def test_a_law_becomes_the_three_rows_that_curves_are_drawn_from():
    rows = make_law_results("EN", "4x128", (0.04, 0.2, 0.08), unit_tokens=10**6, source="pico")
    assert {row.metric: row.value for row in rows} == {"law_a": 0.04, "law_b": 0.2, "law_c": 0.08}


# The page.


@pytest.mark.parametrize(("file", "kind"), [("config.json", "run"), ("study.json", "study")])
def test_a_directory_of_a_run_or_a_study_is_refused(tmp_path, file, kind):
    (tmp_path / file).write_text("{}")
    with pytest.raises(ValueError, match=f"holds a {kind}"):
        paper_page.write_reference_page(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [file]


def test_laws_over_the_ratio_are_held_against_the_reported_sweeps():
    rows = reference.read_reference_results()
    sweep = next(sweep for sweep in ratio_laws.SWEEPS if "disjoint" in sweep.name)
    choice, runs = ratio_laws.fit_sweep(sweep, rows, place=1)
    assert runs == 11 and choice.law.form.centre.tokens == pytest.approx(reference.UNIT_TOKENS)
    assert choice.law.form.centre.parameters == pytest.approx(135_780_864)
    reported = [row for row in rows if row.figure == "Figure 3" and row.metric == "ppl_FR"]
    disjoint = [row for row in reported if row.setting["vocab"].startswith("disjoint")]
    loss = np.log([row.value for row in disjoint])
    np.testing.assert_allclose(choice.law.loss(choice.law.form.mixtures), loss, atol=0.03)
    # Left out one by one, by NumPy: a line in powers of the share, over many exponents.
    share = np.array([0.05, *np.linspace(0.1, 0.9, 9), 0.95])
    missed = []
    for out in range(1, 10):
        kept, fits = np.arange(11) != out, []
        for b in np.linspace(0.05, 0.5, 451):
            design = np.stack([np.ones(11), share**-b], axis=1)
            found = np.linalg.lstsq(design[kept], loss[kept])[0]
            fits.append((((design[kept] @ found - loss[kept]) ** 2).sum(), design[out] @ found))
        missed.append(min(fits)[1] - loss[out])
    error = np.sqrt(np.mean(np.square(missed)))
    assert choice.errors["own_tokens"].ratios == pytest.approx(error, rel=0.01)
    assert choice.interpolation.ratios < error
