"""Damaged files of every format that core reads: checkpoints, other people's, containers, recipes.

They end in a result or in one line; tests/hostile/campaign.py tries more of them.
"""

from pathlib import Path

import pytest
from core_formats import CORE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutants import BYTES, Format, bad, damage, kinds, verdict

Good = dict[str, tuple[Path, bytes]]
BY_NAME = {form.name: form for form in CORE}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Good:
    """A good file of every format."""
    made = {name: tmp_path_factory.mktemp("hostile") / name for name in BY_NAME}
    for name, path in made.items():
        BY_NAME[name].write(path)
    return {name: (path, path.read_bytes()) for name, path in made.items()}


@pytest.mark.parametrize("name", BY_NAME)
def test_a_good_file_is_read(name: str, good: Good) -> None:
    path, data = good[name]
    path.write_bytes(data)
    assert verdict(BY_NAME[name], path).outcome == "result"


@pytest.mark.parametrize(("name", "kind"), [(form.name, kind) for form in CORE for kind in form.edits])
def test_known_damage_is_a_result_or_a_line(name: str, kind: str, good: Good) -> None:
    path, data = good[name]
    damage(BY_NAME[name], data, kind, 0, path)
    assert not bad({kind: verdict(BY_NAME[name], path)})


def _random_kinds(form: Format) -> list[str]:
    return [kind for kind in kinds(form) if kind in BYTES or kind == "words"]


@pytest.mark.parametrize("name", BY_NAME)
@settings(max_examples=40, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(draw=st.data())
def test_random_damage_is_a_result_or_a_line(name: str, draw: st.DataObject, good: Good) -> None:
    form, (path, data) = BY_NAME[name], good[name]
    kind = draw.draw(st.sampled_from(_random_kinds(form)))
    seed = draw.draw(st.integers(0, 2**32))
    damage(form, data, kind, seed, path)
    assert not bad({f"{kind} {seed}": verdict(form, path)})
