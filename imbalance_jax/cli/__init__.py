"""What every command shares: reading the command line, help, and how errors leave it.

Exit codes: 0 done, 1 an error after the first step began, 2 an error found before it, 75 preempted
or interrupted and saved, 134 another process was lost. An error that a user can mend is one message
without a traceback.
"""

from imbalance_jax.cli.command_line import (
    define_compute_flags,
    define_config_flag,
    format_compute_flags,
    get_config_name,
    require_config,
    require_run_config,
)
from imbalance_jax.cli.config_files import load_config_file
from imbalance_jax.cli.exits import (
    DONE,
    FAILED,
    LOST,
    PREEMPTED,
    REFUSED,
    check_same_measurement,
    exit_with_error,
)
from imbalance_jax.cli.help_text import Subcommand
from imbalance_jax.cli.running import run_command
