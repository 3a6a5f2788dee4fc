"""``python cli.py import``: from a published file to ``weights.safetensors``."""

import argparse
import ast
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lustral.command_line import Parser
from lustral.networks.importing import FORMATS, Format
from lustral.networks.importing.reading import existing, sha256
from lustral.networks.weights import architecture, save_network


def import_weights(form: str, source: str | Path, output: str | Path, /, **options: Any) -> Path:
    """Convert the published file ``source`` of format ``form`` into the weights file ``output``.

    The options, the hash of the source, its origin and its licence are stored in the metadata.

    Raises:
        ValueError: if the format is unknown or does not have an option, the output exists, or the file does not fit.
        FileNotFoundError: if the source does not exist.
    """
    if form not in FORMATS:
        raise ValueError(f"--format is {form!r}; it may be {', '.join(sorted(FORMATS))}.")
    chosen = FORMATS[form]
    known = option_names(chosen)
    if unknown := sorted(options.keys() - set(known)):
        raise ValueError(
            f"The format {form} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'} (--set NAME=VALUE)."
        )
    if missing := [name for name in option_names(chosen, required=True) if name not in options]:
        raise ValueError(f"The format {form} needs {' and '.join(f'--set {name}=VALUE' for name in missing)}.")
    if Path(output).suffix != ".safetensors":
        raise ValueError(f"--output is {output}; it must end in .safetensors.")
    path, output = existing(source), Path(output).expanduser()
    if path.resolve() == output.resolve():
        raise ValueError(f"--output is the source itself ({output}): choose another --output.")
    if output.exists():
        raise ValueError(f"--output {output} is there already: move it away or choose another --output.")
    network = chosen.load(path, **options)
    notes = {name: str(value) for name, value in options.items()} | {
        "format": form,
        "source": path.name,
        "source_sha256": sha256(path),
        "published": chosen.published,
        "licence": chosen.licence,
    }
    return save_network(network, output, notes)


def option_names(form: Format, required: bool = False) -> list[str]:
    """The names of a format's options for ``--set``; with ``required`` only those without a default."""
    parameters = inspect.signature(form.load).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and (p.default is p.empty or not required)]


def _shown_options(form: Format) -> str:
    needed = option_names(form, required=True)
    names = [f"{name} (needed)" if name in needed else name for name in option_names(form)]
    return ", ".join(names) or "no options"


def _value(word: str) -> tuple[str, Any]:
    """Parse ``name=value``, where the value is a Python literal; anything else is a string."""
    name, equals, text = word.partition("=")
    if not equals:
        raise ValueError(f"--set takes NAME=VALUE, not {word!r}.")
    try:
        return name, ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # as literal_eval's documentation says
        return name, text


def _options(words: Sequence[str]) -> dict[str, Any]:
    values = [_value(word) for word in words]
    names = [name for name, _ in values]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"--set gives {twice[0]} more than once: give it once.")
    return dict(values)


def run_command(words: Sequence[str]) -> int:
    """Run the subcommand ``import`` with command-line arguments ``words``; returns the exit code."""
    table = "\n".join(f"  {f.name:<20} {f.network}  [{_shown_options(f)}]" for f in FORMATS.values())
    parser = Parser(
        "cli.py import",
        description="Convert published weights. Nothing in the source file is run, and every tensor is used once.",
        epilog=f"formats, with the options of --set:\n{table}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--format", required=True, metavar="F", help="one of those below")
    parser.add_argument("--source", required=True, metavar="FILE", help="the published file")
    parser.add_argument("--output", required=True, metavar="FILE", help="the weights file to write (.safetensors)")
    parser.add_argument(
        "--set", nargs="*", action="extend", default=[], metavar="NAME=VALUE", help="options of the format"
    )
    options = parser.parse_args(words)
    path = import_weights(options.format, options.source, options.output, **_options(options.set))
    from lustral.networks.weights import load_network

    network = load_network(path)
    form, size = FORMATS[options.format], sum(p.numel() for p in network.parameters())
    print(f"{path}: {architecture(network)['builder']}, {size:,} parameters, licence of the weights: {form.licence}")
    return 0
