"""The package's own imports: one direction, no circle."""

import ast
import graphlib
from pathlib import Path

import s3h_ext

ROOT = Path(s3h_ext.__file__).parent
#: From the ground up: a module imports from its own room and from those before it.
FLOORS = (
    set(
        "__init__ checks files text table_files presets command_line huge_pages".split()
    ),
    {"ops"},
    {"losses", "models"},
    {"data"},
    {"methods"},
    {"runs"},
    {"report"},
    {"training"},
    {"train", "evaluate", "predict", "export", "info", "show", "__main__"},
)


def module_files():
    """Module name -> its file; a package is called by its ``__init__``."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in sorted(ROOT.rglob("*.py"))
    }


def imported_modules(path, modules):
    """The package's modules that a file imports anywhere, for type checking too."""
    found = set()

    def add(name):
        for candidate in (name, f"{name}.__init__" if name else "__init__"):
            if candidate in modules:
                found.add(candidate)
                return True
        return False

    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names = [(node.module, alias.name) for alias in node.names]
        for module, member in names:
            package, _, inner = module.partition(".")
            if package == "s3h_ext":
                deeper = ".".join(part for part in (inner, member) if part)
                if not (member and add(deeper)):
                    assert add(inner), f"{path}: {module} is not of the package"
    return found


def floor(module):
    """How high the room of a module lies; commands are on top wherever they are."""
    room = "__main__" if module.endswith("__main__") else module.split(".")[0]
    (place,) = [number for number, rooms in enumerate(FLOORS) if room in rooms]
    return place


def edges():
    modules = module_files()
    return {name: imported_modules(path, modules) for name, path in modules.items()}


def test_every_module_has_a_room():
    for module in module_files():
        floor(module)


def test_no_import_runs_upward():
    for module, others in edges().items():
        for other in others:
            assert floor(other) <= floor(module), f"{module} imports {other}"
            # Rooms on one floor do not know each other.
            rooms = {module.split(".")[0], other.split(".")[0]}
            assert rooms != {"losses", "models"}, f"{module} imports {other}"


def test_imports_make_no_circle():
    graphlib.TopologicalSorter(edges()).prepare()  # raises CycleError
