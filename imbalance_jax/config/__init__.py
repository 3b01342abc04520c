"""Every field of a run, what it may be, and what follows from it without any text."""

from imbalance_jax.config.fields import (
    FieldRow,
    PlainField,
    format_field_value,
    format_markdown_page,
    list_bounds,
    list_field_rows,
)
from imbalance_jax.config.identity import (
    NEWER,
    build_run_identity,
    find_differences,
    hash_plain_values,
)
from imbalance_jax.config.nearest import suggest_nearest_name
from imbalance_jax.config.recipes import (
    GRAMMAR,
    SCALES,
    cloned,
    continued,
    grammatical,
    parse_arg,
    parse_ratio,
    scaled,
    spoken,
)
from imbalance_jax.config.resolve import (
    build_config_dict,
    declared,
    default,
    describe_unknown_field,
    parse_dataclass,
    resolve_config,
    to_dict,
)
from imbalance_jax.config.schedule import (
    compute_learning_rate,
    compute_loss_weights,
    compute_sequence_totals,
    list_stages,
    reduce_ratio,
    resolve_stage_steps,
)
from imbalance_jax.config.schema import (
    REMAT,
    AlignmentConfig,
    Attention,
    CheckpointConfig,
    Config,
    EvaluationConfig,
    LanguageConfig,
    MeshConfig,
    MixtureConfig,
    ModelConfig,
    OptimizerConfig,
    Schedule,
    VocabularyConfig,
    make_natural_sort_key,
)
from imbalance_jax.config.stage_recipes import (
    changing_stages,
    equal_stages,
    joining_stages,
)
from imbalance_jax.config.text_schema import (
    SPECIALS,
    ParallelConfig,
    SourceConfig,
    SyntheticConfig,
    TokenizerConfig,
    list_pair_sets,
)
