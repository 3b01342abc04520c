"""Shows the fields of a config, with defaults and meanings.

    python -m imbalance_jax.config --config=90_10
    python -m imbalance_jax.config --config=90_10:scale=pico --field=model
    python -m imbalance_jax.config --workdir=runs/90_10 --json
    python -m imbalance_jax.config --config=studies/ratio --run=r90_10_s0 --field=mixture

Values that are not the default are bold on a terminal. Without a config, every field is shown at
its default. --json prints an object for each field, by its name.
"""

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from imbalance_jax import cli
from imbalance_jax import config as config_lib
from imbalance_jax.config import Config, FieldRow
from imbalance_jax.runs import storage
from imbalance_jax.runs.json_text import format_json
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.study import grid
from imbalance_jax.study.study_directory import StudyDirectory

FLAGS = flags.FLAGS


def define_flags() -> None:
    cli.define_config_flag()
    flags.DEFINE_string("workdir", None, "DIR: A run or a study that has begun, for --config.")
    flags.DEFINE_string("run", None, "RUN: Which run of a study, by its id.")
    flags.DEFINE_string("field", None, "FIELD: A field or a group of fields, such as mixture.")
    flags.DEFINE_bool("json", False, "Print JSON.")
    flags.DEFINE_bool("markdown", False, "Print the page docs/config.md.")


def main() -> int:
    if FLAGS.markdown:
        print(config_lib.format_markdown_page(), end="")
        return cli.DONE
    rows = select_field_rows(config_lib.list_field_rows(_find_config()), FLAGS.field or "")
    if FLAGS.json:
        print(format_json({row.name: _build_plain_row(row) for row in rows}, indent=1))
    else:
        _print_field_table(rows)
    return cli.DONE


def _find_config() -> Config | None:
    """Returns the config that the flags name, or None if they name none.

    Raises:
      ValueError: --run names no run of a study, or is missing.
    """
    if FLAGS.config is not None and "runs" in FLAGS.config:
        return _choose_run(grid.resolve_study(FLAGS.config))
    if FLAGS.config is not None:
        return cli.require_run_config()
    if FLAGS.workdir is None:
        return None
    if (storage.parse_path(FLAGS.workdir) / "study.json").exists():
        return _choose_run(StudyDirectory(FLAGS.workdir).study())
    return RunDirectory(FLAGS.workdir).config()


def _choose_run(study: grid.StudyConfig) -> Config:
    some = ", ".join(list(study.runs)[:3])
    if FLAGS.run is None:
        raise ValueError(f"Each run of a study has a config. Choose one with --run, of {some}, ...")
    if FLAGS.run not in study.runs:
        nearest = config_lib.suggest_nearest_name(FLAGS.run, study.runs)
        raise ValueError(
            f"--run={FLAGS.run}: the study has no such run. {nearest or f'It has {some}, ...'}"
        )
    return study.runs[FLAGS.run].config


def select_field_rows(rows: Sequence[FieldRow], field: str) -> list[FieldRow]:
    """Returns the rows of a field or of a group of fields; config. in front may be left out.

    Raises:
      ValueError: there is no such field; the message names the nearest one.
    """
    short = field.removeprefix("config").removeprefix(".")
    wanted = f"config.{short}." if short else "config."
    chosen = [row for row in rows if f"{row.name}.".startswith(wanted)]
    if chosen:
        return chosen
    dotted = [row.name.removeprefix("config.") for row in rows]
    groups = [name.rpartition(".")[0] for name in dotted]
    # peak_lr may mean optimizer.peak_lr.
    inner = [name for name in dotted if name.endswith(f".{short}")]
    nearest = config_lib.suggest_nearest_name(short, [*dotted, *filter(None, groups)])
    hint = f"Did you mean {' or '.join(inner[:3])}?" if inner else nearest
    raise ValueError(f"--field={field}: the config has no such field. {hint}".strip())


def _build_plain_row(row: FieldRow) -> dict[str, Any]:
    plain = dataclasses.asdict(row)
    del plain["name"]
    return plain


def _print_field_table(rows: Sequence[FieldRow]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    for group, members in itertools.groupby(rows, key=lambda row: row.group):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
        table.title, table.title_justify, table.title_style = escape(group), "left", "bold"
        # Most of the width is for the meaning.
        for heading, width in (("field", 20), ("type", 21), ("value", 22), ("default", 14)):
            table.add_column(heading, max_width=width, overflow="fold")
        table.add_column("meaning", ratio=1)
        for row in members:
            value = escape(config_lib.format_field_value(row.value))
            table.add_row(
                escape(row.name.rpartition(".")[2]),
                row.bounded_type,
                f"[bold]{value}[/]" if row.changed else value,
                escape(config_lib.format_field_value(row.default)),
                escape(row.meaning),
            )
        console.print(table)


if __name__ == "__main__":
    define_flags()
    cli.run_command(main)
