"""Plugins: what they raise, take or break stays with them."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
from importlib.metadata import EntryPoint
from types import ModuleType, SimpleNamespace

import pytest

import odeopt
from odeopt import registry as registry_module
from odeopt.registry import Registry, load_plugins
from odeopt.tools import plugins as plugins_module
from odeopt.tools.plugins import BUILT_IN, ENTRY_POINT_GROUP, Plugins

DISTRIBUTION = SimpleNamespace(name="theirs", version="1.0")


@pytest.fixture
def unloaded(monkeypatch):
    """As if no plugin had been loaded yet."""
    monkeypatch.setattr(registry_module, "PLUGINS", Plugins())


@pytest.fixture
def install(unloaded, monkeypatch):
    """Replaces the installed entry points; load them with `load_plugins()`."""

    def replace(*points):
        monkeypatch.setattr(plugins_module, "entry_points", lambda group: points)

    return replace


@pytest.fixture
def things(monkeypatch):
    """A registry that plugins find in the module `shared`, beside three events."""
    shared = ModuleType("shared")
    shared.THINGS = Registry("thing")
    shared.begun, shared.go_on, shared.end = (threading.Event() for _ in range(3))
    monkeypatch.setitem(sys.modules, "shared", shared)
    return shared.THINGS


@pytest.fixture
def write(monkeypatch, tmp_path):
    """Writes a module that can be imported; gives its entry point."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)

    def module(name, text):
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        importlib.invalidate_caches()
        return point(name)

    yield module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def point(module, name=None):
    return EntryPoint(name or module, module, ENTRY_POINT_GROUP)


def registers(*names):
    return "from shared import THINGS\n" + "".join(f"THINGS.register({n!r})(dict)\n" for n in names)


def errors():
    return [report.error for report in load_plugins()]


def run(code, folder):
    """The lines that a new process prints in which the modules of a folder come first."""
    begin = f"import sys; sys.path.insert(0, {str(folder)!r})\n"
    command = [sys.executable, "-c", begin + code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def distribute(folder, name, entry_points, metadata=None):
    """A distribution as it lies in site-packages."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_bytes(entry_points)
    if metadata is not None:
        (info / "METADATA").write_bytes(metadata)


def test_the_built_in_plugins_come_through_the_entry_point():
    reports = {report.module: report for report in load_plugins()}
    assert reports["odeopt_plugins"].error is None
    assert reports["odeopt_plugins"].distribution == "odeopt"
    assert "nesterov-flow" in odeopt.FIELDS.names()


def test_entry_points_are_loaded_once(unloaded, monkeypatch):
    calls = []
    monkeypatch.setattr(plugins_module, "entry_points", lambda group: calls.append(group) or ())
    load_plugins()
    assert set(calls) == {ENTRY_POINT_GROUP}
    calls.clear()
    load_plugins()
    assert calls == []


def test_looking_up_a_name_loads_plugins(install, write, things):
    install(write("good_plugin", registers("good")))
    assert things.get("good") is dict


def test_entry_points_of_other_groups_are_left_alone(unloaded, monkeypatch, tmp_path):
    before = len(load_plugins())
    monkeypatch.setattr(registry_module, "PLUGINS", Plugins())
    distribute(tmp_path, "other", b"[another.group]\nother = no_such_module_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert len(load_plugins()) == before


def test_a_failing_plugin_is_reported(install):
    install(point("no_such_module_anywhere", "broken"))
    (report,) = load_plugins()
    assert (report.name, report.module) == ("broken", "no_such_module_anywhere")
    assert "ModuleNotFoundError" in report.error


def test_a_failing_plugin_brings_nothing_else_down(install, write, things):
    install(point("no_such_module_anywhere"), write("good_plugin", registers("good")))
    assert [error is None for error in errors()] == [False, True]
    assert things.names() == ["good"]
    assert odeopt.SOLVERS.get("euler") is odeopt.Euler


@pytest.mark.parametrize(("raised", "said"), [
    ("RuntimeError('no licence')", "RuntimeError: no licence"),
    ("SystemExit('wrong machine')", "SystemExit: wrong machine"),
    ("KeyboardInterrupt", "KeyboardInterrupt"), ("GeneratorExit", "GeneratorExit"),
    ("type('Own', (BaseException,), {})('!')", "Own: !"),
    ("RuntimeError('half \\ud800')", r"RuntimeError: half \ud800"),
])  # fmt: skip
def test_whatever_a_plugin_raises_is_reported_and_the_next_is_loaded(
    install, write, things, raised, said
):
    install(write("raising", f"raise {raised}\n"), write("good", registers("good")))
    assert errors() == [said, None]
    assert things.names() == ["good"]
    assert len(load_plugins()) == 2


@pytest.mark.parametrize("method", ["__str__", "__repr__"])
def test_an_error_that_cannot_be_shown_is_reported_by_its_type(install, write, method):
    text = f"class Mute(Exception):\n    def {method}(self):\n        raise KeyboardInterrupt\n"
    install(write("mute", text + "raise Mute(Mute())\n"))
    assert errors() == ["Mute"]


def test_a_malformed_entry_point_is_reported(install):
    install(point("!!", "malformed"))
    (report,) = load_plugins()
    assert (report.name, report.module) == ("malformed", "!!")
    assert report.error is not None


def test_an_unknown_name_mentions_plugins_that_failed(install):
    install(point("no_such_module_anywhere", "broken"))
    with pytest.raises(odeopt.UnknownNameError, match="Plugins that failed to load: broken"):
        odeopt.SOLVERS.get("eulr")


def test_a_plugin_may_look_up_names_while_it_is_imported(install, write):
    text = "import odeopt\nassert odeopt.SOLVERS.get('euler') is odeopt.Euler\n"
    install(write("asking_plugin", text))
    assert errors() == [None]


def test_reports_cannot_be_changed_from_outside(install):
    install(point("no_such_module_anywhere"))
    load_plugins().clear()
    assert len(load_plugins()) == 1


def test_a_plugin_that_fails_half_way_brings_nothing(install, write, things):
    earlier = write("earlier", "from shared import THINGS\nTHINGS.register('old', list)(dict)\n")
    again = "import earlier\nexec(\"THINGS.register('old', set)(dict)\", vars(earlier))\n"
    install(earlier, write("half", registers("new") + again + "raise RuntimeError\n"))
    assert errors() == [None, "RuntimeError"]
    assert things.names() == ["old"]
    assert things.example("old") is list


def test_what_a_failed_plugin_has_imported_registers_when_it_is_imported_again(
    install, write, things
):
    write("package.__init__", "import package.entries\nraise RuntimeError\n")
    write("package.entries", registers("mine"))
    install(point("package"))
    assert errors() == ["RuntimeError"]
    assert things.names() == []
    write("package.__init__", "import package.entries, package.healed\n")
    write("package.healed", "")
    importlib.import_module("package")
    assert things.names() == ["mine"]


def test_a_plugin_survives_that_a_failed_one_has_imported(install, write, things):
    good = write("good", registers("good"))
    install(write("bad", "import good\nraise RuntimeError\n"), good)
    assert errors() == ["RuntimeError", None]
    assert things.names() == ["good"]


def test_the_built_in_plugins_are_loaded_first(install, monkeypatch):
    imported = []
    monkeypatch.setattr(plugins_module.importlib, "import_module", imported.append)
    install(point("another"), point(BUILT_IN))
    load_plugins()
    assert imported[:2] == [BUILT_IN, "another"]


def test_a_plugin_cannot_take_the_name_of_a_built_in_method(tmp_path):
    distribute(tmp_path, "thief", b"[odeopt.plugins]\nthief = thief\n", b"Name: thief\n")
    taking = "import odeopt\nfor n in ('mine', 'maml'): odeopt.METHODS.register(n)(dict)\n"
    (tmp_path / "thief.py").write_text(taking)
    names, *rest = run(
        "import odeopt\nfrom odeopt.registry import load_plugins\n"
        "print(*odeopt.METHODS.names())\nprint(odeopt.METHODS.get('maml').__module__)\n"
        "print(*[r.error for r in load_plugins() if r.name == 'thief'])\n"
        "print(*[r.error for r in load_plugins() if r.name == 'builtin'])\n",
        tmp_path,
    )
    assert names.split() == odeopt.METHODS.names()
    refused = "InputError: cannot register builtins.dict as method 'maml'"
    assert rest[0] == "odeopt_plugins.maml"
    assert rest[1].startswith(refused)
    assert rest[2] == "None"


def test_a_script_cannot_take_the_name_of_a_built_in_method_before_the_first_look_up(tmp_path):
    refused, names = run(
        "import odeopt\ntry: odeopt.METHODS.register('maml')(dict)\n"
        "except odeopt.InputError as error: print(error)\n"
        "print(*odeopt.METHODS.names())\n",
        tmp_path,
    )
    assert refused.startswith("cannot register builtins.dict as method 'maml'")
    assert names.split() == odeopt.METHODS.names()


class Hostile:
    """Metadata that cannot be read."""

    def __getattr__(self, name):
        raise AttributeError(name) if name.startswith("__") else KeyboardInterrupt(name)


@pytest.mark.parametrize(("distribution", "source"), [
    (None, ("unknown", "unknown")),
    (SimpleNamespace(name=None, version=None), ("unknown", "unknown")),
    (SimpleNamespace(name="", version=3), ("unknown", "unknown")),
    (SimpleNamespace(name="theirs"), ("theirs", "unknown")),
    (Hostile(), ("unknown", "unknown")),
    (DISTRIBUTION, ("theirs", "1.0")),
])  # fmt: skip
def test_a_plugin_of_an_unreadable_distribution_is_loaded(
    install, things, write, distribution, source
):
    module = write("good", registers("good")).module
    install(SimpleNamespace(name="good", value=module, module=module, dist=distribution))
    (report,) = load_plugins()
    assert (report.distribution, report.version) == source
    assert report.error is None
    assert things.names() == ["good"]


@pytest.mark.parametrize("entry", [Hostile(), None, SimpleNamespace(name=3, module=None)])
def test_an_unreadable_entry_point_is_a_failed_plugin(install, write, things, entry):
    install(entry, write("good", registers("good")))
    failed, good = load_plugins()
    assert (failed.name, failed.module, failed.version) == ("unknown", "unknown", "unknown")
    assert failed.error is not None
    assert good.error is None


@pytest.mark.parametrize("entries", [b"[any.group]\nno value\n", b"[odeopt.plugins]\nx = \xff\n"])
def test_entry_points_that_cannot_be_parsed_are_a_failed_plugin(
    unloaded, monkeypatch, tmp_path, entries
):
    distribute(tmp_path, "garbage", entries, b"Name: garbage\nVersion: 2\n")
    distribute(tmp_path, "other", b"[odeopt.plugins]\nother = no_such_module\n", b"\xff\xfe")
    monkeypatch.syspath_prepend(tmp_path)
    reports = {(report.distribution, report.version): report for report in load_plugins()}
    garbage = reports["garbage", "2"]
    assert (garbage.name, garbage.module) == ("unknown", "unknown")
    assert garbage.error.startswith(("TypeError", "UnicodeDecodeError"))
    assert "no_such_module" in reports["unknown", "unknown"].error
    assert reports["odeopt", odeopt.__version__].error is None


def in_thread(function):
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


WAITING = "import shared\nshared.begun.set()\nassert shared.go_on.wait(30)\n"


def test_other_threads_wait_until_all_plugins_are_loaded(install, write, things):
    shared, found = sys.modules["shared"], []
    install(write("slow", WAITING + registers("slow")), write("last", registers("last")))
    first = in_thread(load_plugins)
    assert shared.begun.wait(30)
    second = in_thread(lambda: found.append(things.names()))
    second.join(0.2)
    assert second.is_alive()
    shared.go_on.set()
    for thread in (first, second):
        thread.join(30)
    assert found == [["last", "slow"]]


def test_what_another_thread_registers_meanwhile_stays(install, write, things):
    shared = sys.modules["shared"]
    install(write("slow", registers("slow") + WAITING + "raise RuntimeError\n"))
    first = in_thread(load_plugins)
    assert shared.begun.wait(30)
    second = in_thread(lambda: things.register("mine")(dict))
    second.join(30)
    assert not second.is_alive()
    shared.go_on.set()
    first.join(30)
    assert things.names() == ["mine"]


def test_a_thread_that_registers_waits_for_the_built_in_plugins_only(
    install, write, things, monkeypatch
):
    shared = sys.modules["shared"]
    monkeypatch.setattr(plugins_module, "BUILT_IN", "first")
    last = write("last", "import shared\nassert shared.end.wait(30)\n")
    install(last, write("first", WAITING + registers("first")))
    loading = in_thread(load_plugins)
    assert shared.begun.wait(30)
    registering = in_thread(lambda: things.register("mine")(dict))
    registering.join(0.2)
    assert registering.is_alive()
    shared.go_on.set()
    registering.join(20)
    assert not registering.is_alive()
    assert loading.is_alive()
    shared.end.set()
    loading.join(30)
    assert things.names() == ["first", "mine"]
