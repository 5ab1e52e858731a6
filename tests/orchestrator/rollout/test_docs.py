"""docs/rollouts.md says what the code does: every word, every default."""

import re
import tomllib
from pathlib import Path

from beacon_ota.orchestrator.rollout import advance, fields, gates, plans, windows
from beacon_ota.orchestrator.rollout.plan_types import LADDER, Gate, Retry
from beacon_ota.orchestrator.rollout.plans import PRESETS, parse_plan
from beacon_ota.orchestrator.rollout.types import Reason
from tests.orchestrator.rollout.build import NEW

PAGE = (Path(__file__).parents[3] / "docs" / "rollouts.md").read_text()
WORDS = set(re.findall(r"`([a-z_-]+)`", PAGE))


def test_every_reason_is_there():
    assert {reason.value for reason in Reason} <= WORDS
    assert set(PRESETS) <= WORDS


def test_every_word_of_the_gates_is_there():
    source = Path(gates.__file__).read_text()
    said = set(re.findall(r'Verdict\.[A-Z]+, "([a-z_]+)"', source)) | {"failures_in_a_row"}
    assert len(said) > 8 and said <= WORDS


def test_every_error_is_there():
    for module in (advance, fields, plans, windows):
        source = Path(str(module.__file__)).read_text()
        codes = re.findall(r'Error\(\s*"([a-z_]+)"', source)
        assert set(codes) - {"transition_kind", "site_kind"} <= WORDS, module.__name__


def test_the_plan_in_full_has_the_defaults():
    text = re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert text is not None
    plan = parse_plan(tomllib.loads(text[1]), rollout_id="r1", release=NEW)
    default = parse_plan({}, rollout_id="r1", release=NEW)
    assert plan.gate == Gate() and plan.ladder == LADDER and plan.retry == Retry()
    assert (plan.required, plan.offer_s) == (default.required, default.offer_s)
    assert len(plan.waves) == 2
