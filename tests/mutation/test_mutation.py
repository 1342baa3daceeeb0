"""Mutation testing itself: what is changed, who notices, and what is reported."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from tests.mutation.child import REPOSITORY
from tests.mutation.equivalent import EQUIVALENT, ON_A_GPU, Equivalent
from tests.mutation.mutant import Mutant, replacing
from tests.mutation.operators import mutants
from tests.mutation.report import Report, Verdict
from tests.mutation.run import BaselineError, Core, draw, lines_of, run
from tests.mutation.survivors import named_mutants
from tests.mutation.tests_for import DESELECTED, PARTS, Part
from tests.mutation.trials import Job, run_all
from tests.mutation.workspace import Workspace


def changed(source):
    """Each mutant of a source, as text."""
    text = source.encode()
    return [mutant.apply(text).decode() for mutant in mutants("x.py", text)]


@pytest.mark.parametrize(("source", "expected"), [
    ("a < b", ["a <= b"]),
    ("a >= b", ["a > b"]),
    ("a == b != c", ["a != b != c", "a == b == c"]),
    ("a is  not b", ["a is b"]),
    ("a not in b", ["a in b"]),
    ("(a  # a < b\n < b)", ["(a  # a < b\n <= b)"]),
    ("a + b", ["a - b"]),
    ("(a) * (b)", ["(a) / (b)"]),
    ("a ** b", ["a * b"]),
    ("a // b", ["a * b"]),
    ("a | b", ["a & b"]),
    ("a += b", ["pass", "a -= b"]),
    ("a and b", ["a or b"]),
    ("a or b", ["a and b"]),
    ("not a", ["(a)"]),
    ("~a", ["(a)"]),
    ("-a", ["(a)"]),
    ("a if b else c", ["a if False else c", "a if True else c"]),
    ("if b:\n  a", ["if False:\n  a", "if True:\n  a"]),
    ("while b:\n  a", ["while False:\n  a"]),
    ("[a for a in b if c]", ["[a for a in b if True]"]),
    ("a = 3", ["a = 4"]),
    ("a = 0.5", ["a = 1.0"]),
    ("a = 0.0", ["a = 1.0"]),
    ("a[-1]", ["a[-2]"]),
    ("def f(a=True): ...", ["def f(a=False): ..."]),
    ("f(a)", ["pass"]),
    ("x = min(a)", ["x = max(a)"]),
    ("x = a.any()", ["x = a.all()"]),
    ("self.a = b", ["pass"]),
    ("del a[b]", ["pass"]),
    ("'ü' ; a < b", ["'ü' ; a <= b"]),
])  # fmt: skip
def test_each_operator(source, expected):
    assert changed(source) == expected


@pytest.mark.parametrize("source", [
    '"""Of 3."""',
    "a: Literal[3]",
    "def f(a: int | None) -> Literal[3]: ...",
    "raise ValueError(f'{3 + 4}', 3)",
    "assert a < b, 3",
    "x = f'{a + 1}'",
    "x = a + 'b'",
    "def __repr__(self): return 3",
    "__slots__ = ('a', 3)",
    "if TYPE_CHECKING:\n  a = 3",
    "@cache(3)\ndef f(): ...",
    "class A(B[3]): ...",
    "x = isinstance(a, int | None)",
    "x = warn(a, stacklevel=2)",
    "x = zip(a, b, strict=True)",
    "del a",
    "while True:\n  ...",
])  # fmt: skip
def test_what_changes_no_number_is_left_alone(source):
    assert changed(source) in ([], ["while False:\n  ..."])


@pytest.fixture(scope="module")
def possible():
    return Core(REPOSITORY, PARTS).possible(equivalent=())


def test_mutants_of_the_core_are_other_programs(possible):
    for mutant in draw(possible, 60, seed=1):
        source = (REPOSITORY / mutant.path).read_bytes()
        assert ast.dump(ast.parse(mutant.apply(source))) != ast.dump(ast.parse(source))


def test_a_mutant_says_where_it_is_and_what_it_changes():
    source = b"a = 1\nif a:\n    b = 2\n"
    mutant = mutants("x.py", source)[-1]
    assert mutant.line(source) == 3
    assert mutant.changed_line(source) == "b = 3"
    assert mutant.diff(source) == "@@ -3 +3 @@\n-    b = 2\n+    b = 3"


def test_named_mutants_still_apply(tmp_path):
    named = named_mutants(REPOSITORY)
    for mutant in named:
        source = (REPOSITORY / mutant.path).read_bytes()
        assert ast.dump(ast.parse(mutant.apply(source))) != ast.dump(ast.parse(source))
    core = Core(REPOSITORY, PARTS)
    assert {core.part_of(mutant.path) for mutant in named} <= PARTS.keys()
    (tmp_path / "x.py").write_text("a = a")
    for old in ("b", "a"):
        with pytest.raises(LookupError, match=r"x\.py has [02] times"):
            replacing(tmp_path, "x.py", old, "", "name")


def exists(test):
    """Whether there is a test file, or a test in it."""
    file, _, function = test.partition("::")
    path = REPOSITORY / file
    return path.is_file() and (not function or f"def {function}(" in path.read_text())


def test_every_module_of_the_core_has_tests_that_exist():
    for part in PARTS.values():
        for module in part.modules(REPOSITORY):
            assert (REPOSITORY / module).is_file()
            assert part.tests_of(module)
        assert all(exists(test) for test in part.tests_of_all(part.modules(REPOSITORY)))
        assert part.nearest.keys() <= {
            module.removeprefix("odeopt/") for module in part.modules(REPOSITORY)
        }
    assert all(exists(test) for test in DESELECTED)


def test_mutants_that_nobody_can_kill_are_there_and_have_reasons(possible):
    made = {(m.path, m.changed_line((REPOSITORY / m.path).read_bytes())) for m in possible}
    for one in EQUIVALENT:
        assert one[:2] in made
        assert len(one.reason) > 20
    assert len(EQUIVALENT) <= 20


@pytest.mark.parametrize(("path", "functions"), ON_A_GPU.items())
def test_functions_of_a_gpu_are_there_and_not_drawn(possible, path, functions):
    source = (REPOSITORY / path).read_bytes()
    lines = lines_of(source, functions)
    assert all(f"def {name}(".encode() in source for name in functions)
    assert len(lines) > 3 * len(functions)
    assert not lines & {m.line(source) for m in possible if m.path == path}


def test_what_is_drawn_is_spread_evenly_and_fixed_by_the_seed():
    all_of_them = [Mutant("x.py", k, k, "", "") for k in range(1000)]
    found = draw(all_of_them, 100, seed=3)
    assert [mutant.start // 10 for mutant in found] == list(range(100))
    assert draw(all_of_them, 100, seed=3) == found
    assert draw(all_of_them, 100, seed=4) != found
    assert draw(all_of_them[:3], 5, seed=0) == all_of_them[:3]
    assert draw(all_of_them, 0, seed=0) == []


MODULE = """
def sign(x):
    if x < 0:
        return -1
    return 1
"""

TEST = """
import subprocess, sys
from odeopt.sign import sign

def test_sign():
    assert sign(-3) == -1

def test_in_a_process():
    code = "from odeopt.sign import sign; print(sign(3))"
    assert subprocess.check_output([sys.executable, "-S", "-c", code]) == b"1\\n"
"""

BLIND_TO = {"if x <= 0:", "if x < 1:", "return -2"}


@pytest.fixture
def core(tmp_path):
    """A package with a function, and tests that are blind to some of its mutants."""
    root = tmp_path / "repository"
    for name, text in {"odeopt/__init__.py": "", "odeopt/sign.py": MODULE,
                       "tests/test_sign.py": TEST.replace("== -1", "< 0"),
                       "pyproject.toml": ""}.items():  # fmt: skip
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Core(root, {"signs": Part(("sign.py",), ("test_sign.py",))})


@pytest.fixture
def workspaces(core, tmp_path):
    return [Workspace(core.root, tmp_path / str(k)) for k in range(2)]


def test_survivors_are_those_that_the_tests_are_blind_to(core, workspaces):
    said = []
    broken = replacing(core.root, "odeopt/sign.py", "return 1", "return (", "broken")
    found = run(core, [broken], 100, 0, workspaces, said.append)
    assert found.possible == len(core.possible()) == 6
    assert len(found.verdicts) == len(said) - 1 == 7
    by = {verdict.diff.split("+")[-1].strip(): verdict.by for verdict in found.verdicts}
    assert {line for line, killer in by.items() if not killer} == BLIND_TO
    assert by["return ("] == "tests/test_sign.py"  # it cannot be imported
    assert by["if False:"] == "tests/test_sign.py::test_sign"
    assert by["return 2"] == "tests/test_sign.py::test_in_a_process"
    assert not found.is_enough
    for workspace in workspaces:
        assert (workspace.root / "odeopt" / "sign.py").read_text() == MODULE


def test_a_loop_without_end_is_killed_by_time(core, workspaces):
    source = core.read("odeopt/sign.py")
    endless = Mutant("odeopt/sign.py", 0, len(source), "while True: pass", "endless")
    job = Job("endless", endless, ("tests/test_sign.py",), (), 1.0)
    [(_, outcome)] = run_all([job], workspaces)
    assert not outcome.passed
    assert not outcome.in_time


def test_tests_that_fail_anyway_say_nothing(core, workspaces):
    (workspaces[0].root / "tests" / "test_sign.py").write_text("def test_no(): assert False")
    with pytest.raises(BaselineError, match="test_no"):
        run(core, [], 1, 0, workspaces[:1], lambda text: None)


def test_what_nobody_could_tell_is_not_drawn(core):
    spared = Equivalent("odeopt/sign.py", "if x <= 0:", "0 has no sign.")
    lines = {m.changed_line(core.read(m.path)) for m in core.possible([spared])}
    assert len(lines) == 5
    assert spared.line not in lines


def verdict(killed, part="stores"):
    by = "tests/test_a.py::test_b" if killed else ""
    return Verdict(part, "odeopt/a.py", 7, "number", "-a = 1\n+a = 2", killed, by, 2.0)


def test_the_report_says_first_what_came_out(tmp_path: Path):
    report = Report([verdict(True)] * 9 + [verdict(False, "rules")], 500, 3, 120.0)
    assert report.is_enough
    text = report.markdown()
    assert text.startswith("# Mutants: killed 9 of 10 mutants: enough, 90% are wanted\n")
    assert "| stores | 9 | 9 | 2 |" in text
    assert "| rules | 0 | 1 | 2 |" in text
    assert "`odeopt/a.py:7` (number)\n\n```diff\n-a = 1\n+a = 2\n```" in text
    report.write(tmp_path / "new")
    assert (tmp_path / "new" / "mutants.md").read_text() == text
    content = json.loads((tmp_path / "new" / "mutants.json").read_text())
    assert (content["killed"], content["of"], content["seed"]) == (9, 10, 3)
    assert content["mutants"][0]["by"] == "tests/test_a.py::test_b"
    worse = Report([verdict(True)] * 8 + [verdict(False)] * 2, 500, 3, 1.0)
    assert not worse.is_enough
    assert worse.headline == "killed 8 of 10 mutants: too few, 90% are wanted"
    assert "None." in Report([verdict(True)], 1, 0, 1.0).markdown()
