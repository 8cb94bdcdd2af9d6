"""Settings are checked against what takes them: every key of conf/ has a type, and a wrong value is one line before anything is built."""

from pathlib import Path

import pytest
import yaml

from gentok.value_checks import SETTINGS

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("config", "sample", "evaluate", "codec", "adopt", "eval_classifier")


def _plain_keys(tree, above=""):
    for key, value in tree.items():
        if isinstance(value, dict) and "_target_" not in value:
            yield from _plain_keys(value, f"{above}{key}.")
        elif not isinstance(value, dict):
            yield above + key


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_outside_of_components_has_a_type(command):
    tree = yaml.safe_load((ROOT / "conf" / f"{command}.yaml").read_text())
    groups = {group for entry in tree.pop("defaults") if isinstance(entry, dict) for group in entry}
    groups &= {"task", "trainer", "callbacks", "logger", "paths"}
    tree.pop("hydra", None)
    for group in groups:
        tree[group] = {}
        for path in (ROOT / "conf" / group).glob("*.yaml"):
            tree[group].update({k: v for k, v in yaml.safe_load(path.read_text()).items() if k != "defaults"})
    own_check = {"condition", "device", "losses"}
    untyped = {key for key in _plain_keys(tree) if not key.startswith("logger.wandb.")} - set(SETTINGS) - own_check
    assert not untyped
