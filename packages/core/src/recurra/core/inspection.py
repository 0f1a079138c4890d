"""What is known about an input, from what evidence: the verb `inspect` of every domain, the first thing to try."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from recurra.core.errors import UserError, one_line
from recurra.core.inference import failures
from recurra.core.screen import print_table


@dataclass(frozen=True)
class Fact:
    """Something that is known.

    Attributes:
        what: is known.
        value: in words, with units.
        evidence: how it was found.
    """

    what: str
    value: str
    evidence: str


@dataclass
class Inspection:
    """What is known about the files, in their order.

    Attributes:
        files: facts by file.
        problems: why a file cannot be used, in one line; what was found before is among its facts.
    """

    files: dict[Path, list[Fact]]
    problems: dict[Path, str]

    def show(self) -> None:
        """Print a table a file.

        Raises:
            UserError: files cannot be used; its line names them all.
        """
        for path, facts in self.files.items():
            if facts:
                rows = [(fact.what, fact.value, fact.evidence) for fact in facts]
                print_table(("what", "value", "how it is known"), rows, title=str(path))
        if self.problems:
            raise failures(list(self.problems.values()), len(self.files))


def inspect_files(files: Sequence[Path], facts_of: Callable[[Path], Iterable[Fact]]) -> Inspection:
    """What is known about each file; one that cannot be used is reported and the others are looked at.

    Args:
        files: the inputs.
        facts_of: yields the facts about one.
    """
    found: dict[Path, list[Fact]] = {path: [] for path in files}
    problems: dict[Path, str] = {}
    for path, facts in found.items():
        try:
            for fact in facts_of(path):
                facts.append(fact)
        except (UserError, OSError) as error:
            problems[path] = one_line(error)
    return Inspection(found, problems)
