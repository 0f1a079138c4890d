"""The tests that damaged files of every format go through, in the gate."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutants import BYTES, Format, bad, damage, kinds, verdict

Good = dict[str, tuple[Path, bytes]]


def checks(forms: Sequence[Format]) -> tuple[Callable[..., Any], ...]:
    """A fixture of a good file of each format, called `good`, and the tests: good, known damage, random damage."""
    by_name = {form.name: form for form in forms}

    @pytest.fixture(scope="module")
    def good(tmp_path_factory: pytest.TempPathFactory) -> Good:
        made = {name: tmp_path_factory.mktemp("hostile") / name for name in by_name}
        for name, path in made.items():
            by_name[name].write(path)
        return {name: (path, path.read_bytes()) for name, path in made.items()}

    @pytest.mark.parametrize("name", by_name)
    def good_file_is_read(name: str, good: Good) -> None:
        path, data = good[name]
        path.write_bytes(data)
        assert verdict(by_name[name], path).outcome == "result"

    @pytest.mark.parametrize(("name", "kind"), [(form.name, kind) for form in forms for kind in form.edits])
    def known_damage(name: str, kind: str, good: Good) -> None:
        path, data = good[name]
        damage(by_name[name], data, kind, 0, path)
        assert not bad({kind: verdict(by_name[name], path)})

    @pytest.mark.parametrize("name", by_name)
    @settings(max_examples=40, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(draw=st.data())
    def random_damage(name: str, draw: st.DataObject, good: Good) -> None:
        form, (path, data) = by_name[name], good[name]
        ways = [kind for kind in kinds(form) if kind in BYTES or kind == "words"]
        kind, seed = draw.draw(st.sampled_from(ways)), draw.draw(st.integers(0, 2**32))
        damage(form, data, kind, seed, path)
        assert not bad({f"{kind} {seed}": verdict(form, path)})

    return good, good_file_is_read, known_damage, random_damage
