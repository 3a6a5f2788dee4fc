"""Imports run one way only (CONTRIBUTING.md), and nothing draws from a global generator: the syntax trees say so."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHELLS = ("lightning_modules", "datamodules", "callbacks")


def _sources(root: Path) -> list[Path]:
    """Every source file of a clone at ``root``."""
    tops = [path for top in ("lustral", *SHELLS) for path in (root / top).rglob("*.py")]
    return sorted(path for path in [*root.glob("*.py"), *tops] if path.is_file())


def _parts(root: Path) -> set[str]:
    """The parts of `lustral` in a clone at ``root``, whatever folder that is."""
    paths = (path.relative_to(root).parts for path in _sources(root))
    return {path[1].removesuffix(".py") for path in paths if path[0] == "lustral"}


SOURCES = _sources(ROOT)

BOTTOM = {
    "noise",
    "rows",
    "votes",
    "threat",
    "ratio",
    "describe",
    "environment",
    "command_line",
    "pickle_sizes",
    "tensor_files",
}
# What each part of `lustral` may import of it, itself apart. The order is CONTRIBUTING's; within one rank of it,
# networks and purifiers do not know each other.
ALLOWED: dict[str, set[str]] = {
    **dict.fromkeys(BOTTOM, BOTTOM),
    "recipes": set(),  # aids of the command line, which the science neither needs nor knows
    "choices": {"recipes"},
    "complaints": set(),
    "diffusion": BOTTOM,
    "networks": BOTTOM | {"diffusion"},
    "purifiers": BOTTOM | {"diffusion", "detectors"},
    "detectors": BOTTOM | {"diffusion"},
    "corruptions": BOTTOM | {"purifiers"},
    "metrics": BOTTOM | {"diffusion", "networks"},
    "attacks": BOTTOM | {"diffusion", "networks", "purifiers", "detectors"},
    "defence": BOTTOM | {"diffusion", "networks", "purifiers", "attacks"},
    "training": BOTTOM | {"diffusion", "networks", "purifiers", "detectors", "attacks", "defence"},
    "evaluation": BOTTOM | {"diffusion", "networks", "purifiers", "detectors", "corruptions", "attacks", "defence"},
    "tables": BOTTOM | {"evaluation", "recipes"},
    "reporting": BOTTOM
    | {"diffusion", "networks", "purifiers", "detectors", "corruptions", "attacks", "defence", "evaluation", "tables"},
    "api": BOTTOM | {"diffusion", "networks", "purifiers", "attacks", "defence", "evaluation", "reporting"},
}
FRAMEWORKS = {"lightning", "pytorch_lightning", "lightning_fabric", "tensorboard", "jsonargparse"}
ONLY_IN_NETWORKS = {"diffusers", "timm"}


def _imports(source: str, package: str) -> Iterator[tuple[str, int]]:
    """Every module that ``source``, a file of the dotted ``package``, imports anywhere, with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:  # a name may be a submodule: `from lustral import noise`
                yield f"{base}.{alias.name}", node.lineno


def _violations(source: str, path: Path) -> list[str]:
    """Sentences about imports of ``path`` (relative to the root) that run the wrong way."""
    top, found = path.parts[0].removesuffix(".py"), []
    part = path.parts[1].removesuffix(".py") if top == "lustral" and len(path.parts) > 1 else ""
    for name, line in _imports(source, ".".join(path.parent.parts)):
        other, *rest = name.split(".")
        wrong = None
        if other == "cli":
            wrong = "nothing imports cli"
        elif top == "lustral":
            if other in SHELLS:
                wrong = "lustral knows no Lightning shell"
            elif other in FRAMEWORKS or name.startswith("torch.utils.tensorboard"):
                wrong = "lustral is plain PyTorch"
            elif (
                other == "lustral" and part != "__init__" and rest and rest[0] != part and rest[0] not in ALLOWED[part]
            ):
                wrong = f"{part} may not know {rest[0]}"
        elif top in SHELLS and other in SHELLS and other != top:
            wrong = f"{top} may not know {other}"
        if other in ONLY_IN_NETWORKS and (top, part) != ("lustral", "networks"):
            wrong = f"{other} is imported in lustral/networks only"
        if wrong:
            found.append(f"{path}:{line} imports {name}: {wrong}")
    return found


def test_the_walk_finds_the_project() -> None:
    parts = _parts(ROOT)
    assert {"noise", "diffusion", "networks", "purifiers", "attacks", "evaluation"} <= parts
    assert parts - {"__init__"} <= ALLOWED.keys(), "a new part of lustral needs its place in the order"


def test_the_walk_finds_the_project_in_a_folder_of_its_own_name(tmp_path: Path) -> None:
    root = tmp_path / "lustral"  # what `git clone .../lustral` makes
    for name in ("cli.py", "lustral/noise.py", "lustral/networks/unet.py", "callbacks/ema.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    assert _parts(root) == {"noise", "networks"}
    assert len(_sources(root)) == 4


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    assert not _violations(path.read_text(), path.relative_to(ROOT))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("lustral/noise.py", "from lustral.diffusion import unroll"),
        ("lustral/diffusion/solvers.py", "import lustral.purifiers"),
        ("lustral/diffusion/solvers.py", "from ..networks import WideResNet"),
        ("lustral/purifiers/diffpure.py", "from lustral.networks import UNetDenoiser"),
        ("lustral/purifiers/diffpure.py", "def f():\n    from lustral import attacks"),
        ("lustral/attacks/pgd.py", "from lustral.evaluation import Defence"),
        ("lustral/attacks/pgd.py", "if TYPE_CHECKING:\n    from lustral.evaluation.defence import Defence"),
        ("lustral/attacks/pgd.py", "from lustral.training import ClassifierLoss"),
        ("lustral/training/clean.py", "from lustral.evaluation import Evaluator"),
        ("lustral/evaluation/card.py", "from lustral.reporting import tables"),
        ("lustral/evaluation/card.py", "import lightning as L"),
        ("lustral/evaluation/card.py", "from torch.utils.tensorboard import SummaryWriter"),
        ("lustral/networks/weights.py", "import datamodules"),
        ("lustral/attacks/pgd.py", "import timm"),
        ("callbacks/ema.py", "from diffusers import UNet2DModel"),
        ("callbacks/ema.py", "from lightning_modules import RobustnessEvaluation"),
        ("datamodules/base.py", "import callbacks.ema"),
        ("lightning_modules/evaluation.py", "from cli import main"),
    ],
)
def test_the_walk_notices_what_runs_the_other_way(path: str, source: str) -> None:
    assert len(_violations(source, Path(path))) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("lustral/attacks/pgd.py", "from lustral.attacks.engine import Answer"),
        ("lustral/evaluation/card.py", "from lustral.noise import NoiseStream\nimport torch.utils.data"),
        ("lustral/networks/denoisers.py", "from diffusers.models.unets.unet_2d import UNet2DModel"),
        ("callbacks/ema.py", "from lustral.networks import save_network\nimport lightning"),
        ("datamodules/cifar.py", "from datamodules.base import ImageDataModule"),
    ],
)
def test_the_walk_lets_the_right_way_pass(path: str, source: str) -> None:
    assert not _violations(source, Path(path))


# Global generators ------------------------------------------------------------

DRAWS = {
    "bernoulli", "multinomial", "normal", "poisson", "rand", "rand_like", "randint", "randint_like", "randn",
    "randn_like", "randperm",
}  # fmt: skip
IN_PLACE = {
    "bernoulli_",
    "cauchy_",
    "exponential_",
    "geometric_",
    "log_normal_",
    "normal_",
    "random_",
    "uniform_",
}
SEEDS = {"manual_seed", "seed", "seed_everything", "set_rng_state"}
NUMPY_SAFE = {"Generator", "get_state", "Philox", "PCG64", "RandomState", "SeedSequence", "default_rng"}


def _dotted(node: ast.expr) -> str:
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    names.append(node.id if isinstance(node, ast.Name) else "?")
    return ".".join(reversed(names))


def _global_draws(source: str) -> list[str]:
    """Calls that read or seed a global generator: torch's, numpy's or Python's."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        owner, _, name = _dotted(node.func).rpartition(".")
        keyed = any(keyword.arg == "generator" for keyword in node.keywords)
        if (
            (owner == "torch" and name in DRAWS and not keyed)
            or (owner in ("torch", "torch.cuda", "L", "lightning", "lightning.pytorch", "random") and name in SEEDS)
            or (owner == "" and name == "seed_everything")
            or (owner in ("np.random", "numpy.random") and name not in NUMPY_SAFE)
            or (owner == "random" and name not in ("Random", "getstate"))
            or (owner not in ("", "nn.init", "torch.nn.init", "init") and name in IN_PLACE and not keyed)
        ):
            found.append(f"line {node.lineno}: {_dotted(node.func)}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_reads_a_global_generator(path: Path) -> None:
    """Exceptions: the initialisation of weights (nn.init), since training is seeded by its recipe; dropout, whose
    seeding has a file of its own; and code from elsewhere, whose seeding has one too."""
    if path.relative_to(ROOT) in (Path("lightning_modules/dropout.py"), Path("lustral/attacks/global_generators.py")):
        return
    assert not _global_draws(path.read_text())


@pytest.mark.parametrize(
    "source",
    [
        "torch.manual_seed(0)",
        "torch.randn(3)",
        "torch.rand(3, device='cuda')",
        "torch.randn_like(x)",
        "torch.rand_like(x)",
        "torch.randint(0, 9, (3,))",
        "torch.randperm(9)",
        "x.normal_()",
        "torch.empty(3).uniform_()",
        "np.random.rand(3)",
        "np.random.seed(0)",
        "random.random()",
        "random.shuffle(x)",
        "seed_everything(1)",
    ],
)
def test_the_walk_notices_global_draws(source: str) -> None:
    assert len(_global_draws(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "torch.randn(3, generator=g)",
        "torch.randperm(9, generator=torch.Generator().manual_seed(0))",
        "x.normal_(generator=g)",
        "np.random.default_rng(0).random(3)",
        "np.random.RandomState(0).choice(10)",
        "nn.init.kaiming_normal_(w)",
        "noise.normal(shape)",
    ],
)
def test_the_walk_lets_keyed_draws_pass(source: str) -> None:
    assert not _global_draws(source)


# Circles and strangers ------------------------------------------------------------


def _modules() -> dict[str, Path]:
    """Every module of `lustral` by its dotted name."""
    found = {}
    for path in SOURCES:
        relative = path.relative_to(ROOT)
        if relative.parts[0] == "lustral":
            name = ".".join(relative.with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def _at_import(source: str) -> Iterator[ast.stmt]:
    """The statements of a module that run when it is imported."""
    waiting: list[ast.stmt] = list(ast.parse(source).body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            waiting.extend(child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt))


def _wanted(path: Path, name: str, modules: dict[str, Path]) -> set[str]:
    """The modules that module ``name`` of `lustral` needs to be imported; a part's `__init__` hands names on and is no
    need of those inside it."""
    wanted = set()
    for node in _at_import(path.read_text()):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            for full, _ in _imports(ast.unparse(node), package):
                target = full if full in modules else full.rpartition(".")[0]
                if target in modules and target != name and not name.startswith(target + "."):
                    wanted.add(target)
    return wanted


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = _modules()
    needs = {name: _wanted(path, name, modules) for name, path in modules.items() if path.name != "__init__.py"}
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"a circle: {' -> '.join((*trail[trail.index(name) :], name))}"
        if name not in done:
            for other in sorted(needs.get(name, ())):
                walk(other, (*trail, name))
            done.add(name)

    for name in sorted(needs):
        walk(name, ())
    assert len(done) > 80


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_imported_for_types_alone(path: Path) -> None:
    """`if TYPE_CHECKING:` hides a circle, and says that a file is in the wrong place."""
    assert "TYPE_CHECKING" not in path.read_text()


SSNI_NAMES = {"SSNI", "LevelRule", "SigmoidLevels", "LinearLevels", "FixedLevels", "MeanLevels", "ShuffledLevels"}
SSNI_MODULES = {f"lustral.purifiers.{name}" for name in ("ssni", "levels", "reference")}
SSNI_OWN = {
    *(f"lustral/purifiers/{name}.py" for name in ("ssni", "levels", "reference", "__init__")),
    "lightning_modules/score_reference.py",  # makes the reference
}


def _strangers(source: str, path: Path) -> list[str]:
    """What of one method a file outside of it knows: its modules and classes, and what images decide for it by name."""
    found = []
    if str(path) in SSNI_OWN:
        return found
    for name, line in _imports(source, ".".join(path.parent.parts)):
        package, _, last = name.rpartition(".")
        handed_on = package == "lustral.purifiers" and last in SSNI_NAMES
        if package in SSNI_MODULES or name in SSNI_MODULES or handed_on:
            found.append(f"line {line} imports {name}")
    if path.parts[:2] in (("lustral", "purifiers"), ("lustral", "diffusion")):
        return found  # a method's own context, or that of a loop
    for node in ast.walk(ast.parse(source)):
        key, owner = None, None
        if isinstance(node, ast.Subscript):
            key, owner = node.slice, node.value
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "get"
            and node.args
        ):
            key, owner = node.args[0], node.func.value
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.In, ast.NotIn)):
            key, owner = node.left, node.comparators[0]
        if isinstance(key, ast.Constant) and isinstance(key.value, str) and owner is not None:
            name = _dotted(owner).rpartition(".")[2]
            if name in ("context", "held"):
                found.append(f"line {key.lineno} asks a context for {key.value!r}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_knows_a_method_that_is_not_its_own(path: Path) -> None:
    assert not _strangers(path.read_text(), path.relative_to(ROOT))


@pytest.mark.parametrize(
    "source",
    [
        "from lustral.purifiers import SSNI",
        "from lustral.purifiers.levels import LevelRule",
        "import lustral.purifiers.ssni",
        "def f(context):\n    return context['levels']",
        "def f(state):\n    return state.context.get('mask')",
        "def f(held):\n    return 'latents' in held",
    ],
)
def test_the_walk_notices_a_method_where_it_does_not_belong(source: str) -> None:
    assert len(_strangers(source, Path("lustral/attacks/engine.py"))) == 1
