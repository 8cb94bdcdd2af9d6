"""The command line: `gentok COMMAND key=value ...`, train.py and sample.py.

    main.py           `gentok`: which command, its help, the version
    commands.py       what the commands are: a line, examples, the groups of conf/ that matter to each
    help.py           the help of a command, from the comments in conf/
    overrides.py      what a person types -> what Hydra understands
    hydra_run.py      composing conf/ and running a command on it; the only importer of hydra
    config_errors.py  what Hydra finds wrong, in one line
    run_id.py         the name of a run's folder, the same on every process
"""

from gentok.cli.hydra_run import compose, run
from gentok.cli.main import main, sample, train
from gentok.cli.overrides import conf_dir, patient_threads, shell_words

__all__ = ["compose", "conf_dir", "main", "patient_threads", "run", "sample", "shell_words", "train"]
