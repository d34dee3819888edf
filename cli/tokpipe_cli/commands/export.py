"""``tokpipe export``: caches in the form a consumer takes."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokpipe_cli import options as o
from tokpipe_cli.boundary import UsageProblem
from tokpipe_cli.complete import consumer_names
from tokpipe_cli.console import Screen
from tokpipe_cli.each import Each, outputs_of, some_of
from tokpipe_cli.jsonl import emit

if TYPE_CHECKING:
    from tokpipe.errors import TokpipeError
    from tokpipe.export import Exporter, ExportRecord
    from tokpipe.export._inputs import CacheFiles

EPILOG = (
    "[bold]Examples[/bold]\n\n  tokpipe export --list\n\n"
    "  tokpipe export talk.tokpipe.safetensors --to storyboard:api=openai --prompt 'What is shown?'"
    "\n\n  tokpipe export caches/ --to webdataset -o shards/\n\n"
    "  tokpipe export talk.qwen.tokpipe.safetensors --to vllm:form=http --model Qwen/Qwen2-VL-7B"
)
_Files = Annotated[
    list[Path] | None,
    typer.Argument(help="Token caches, or folders of them.", metavar="FILE", show_default=False),
]
_To = Annotated[
    str | None,
    typer.Option(
        "--to", "-t", metavar="CONSUMER", autocompletion=consumer_names,
        help="Consumer by name, with parameters: storyboard, vllm:form=http, npy:frames=100.",
    ),
]  # fmt: skip
_List = Annotated[
    bool,
    typer.Option("--list", help="List the consumers, or with --to show one and its parameters."),
]
_Model = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="NAME_OR_PATH", help="Model that will read it."),
]
_Prompt = Annotated[
    str | None, typer.Option("--prompt", metavar="TEXT", help="Question that goes with the media.")
]
_Source = Annotated[
    Path | None,
    typer.Option("--from-source", metavar="MEDIA",
                 help="The media, or its folder: pictures are read from it in full size."),
]  # fmt: skip


def export(
    files: _Files = None,
    to: _To = None,
    list_: _List = False,
    model: _Model = None,
    prompt: _Prompt = None,
    from_source: _Source = None,
    output: o.Output = None,
    force: o.Force = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> None:
    """Write token caches in the form a model, server, API or trainer takes.

    One output a cache, beside it, or in -o; forms for many caches make one output, -o.
    """
    from tokpipe.export import exporter_from
    from tokpipe.export._inputs import CacheFiles

    screen = Screen(json=as_json, quiet=quiet, verbose=verbose, debug=debug)
    if list_:
        from tokpipe_cli.render_export import show_exporters

        show_exporters(to, screen)
        raise typer.Exit
    if not to:
        raise UsageProblem("no --to given", hint="see the consumers: tokpipe export --list")
    more = {"model": model, "prompt": prompt}
    name, exporter = exporter_from(to, **_fitting(to, more))
    if not getattr(exporter, "writes", True):
        raise UsageProblem(
            f"`{name}` runs in your own process, there is nothing to write",
            hint=exporter.python,
        )
    run = _Run(screen, to, name, exporter, from_source, force=force)
    with CacheFiles(_found(files)) as caches:
        run.all(caches, output, files or [])
    raise typer.Exit(run.each.close())


def _fitting(to: str, given: dict[str, Any]) -> dict[str, Any]:
    """Options as parameters; those that the consumer has not are refused."""
    from tokpipe.export import load_exporter

    name = to.partition(":")[0].strip()
    known = {f.name for f in fields(load_exporter(name))}
    for key, value in given.items():
        if value is not None and key not in known:
            option = "--" + key.replace("_", "-")
            raise UsageProblem(f"`{name}` takes no {option}", hint=f"leave out {option}")
    return {k: v for k, v in given.items() if v is not None}


def _found(files: list[Path] | None) -> list[Path]:
    """Caches named or found in folders, and packed datasets."""
    from tokpipe.batch.dedup import find_caches
    from tokpipe.cache.dataset_info import is_dataset

    found = []
    for given in files or []:
        found += [given] if is_dataset(given) else find_caches([given])
    return some_of(found)


class _Run:
    """The caches of one command, and what became of them."""

    def __init__(
        self, screen: Screen, to: str, name: str, exporter: Exporter, source: Path | None, *,
        force: bool,
    ) -> None:  # fmt: skip
        self.screen, self.to, self.name, self.exporter = screen, to, name, exporter
        self.source, self.force, self._target = source, force, Path()
        if source is not None:
            _fitting(to, {"from_source": source})
            if exporter.whole:
                changed: Any = exporter
                self.exporter = replace(changed, from_source=str(source))
        self.each = Each(screen, failed_event=self._failed_event)
        self._tokens, self._alone = 0, True

    def all(self, caches: CacheFiles, output: str | None, named: list[Path]) -> None:
        """Export every cache."""
        from tokpipe_cli.render_export import show_total

        if self.exporter.whole:
            self._whole(caches, output)
            return
        targets = _targets(caches.names, output, self.name, self.exporter.suffix, named)
        self._alone = len(targets) == 1
        for number, target in enumerate(targets):
            self._guarded(caches, number, target, self._one)
        if not self._alone:
            show_total(self.each.statuses, self._tokens, self.screen)

    def _one(self, path: Path, target: Path) -> None:
        from tokpipe.export import export_cache

        exporter: Any = self.exporter
        if self.source is not None:
            exporter = replace(exporter, from_source=str(_media_of(path, self.source)))
        self._done(export_cache(path, target, self.name, exporter, force=self.force))

    def _whole(self, caches: CacheFiles, output: str | None) -> None:
        from tokpipe.export import export_all

        if output is None:
            raise UsageProblem(
                f"`{self.name}` makes one output of all caches", hint="name it with -o"
            )
        target = Path(output)
        good = [n for n in range(len(caches)) if self._guarded(caches, n, target, self._check)]
        if not good:
            return
        with caches.chosen(good) as chosen:
            self._guarded(
                chosen, 0, target,
                lambda _, t: self._done(
                    export_all(chosen, t, self.name, self.exporter, force=self.force)
                ),
            )  # fmt: skip

    def _check(self, path: Path, _target: Path) -> None:
        from tokpipe.export import check_cache

        check_cache(path, self.name, self.exporter)

    def _guarded(self, caches: CacheFiles, number: int, target: Path, work: Any) -> bool:
        """Do the work of one cache, which may have to be copied out of a dataset first."""
        self._target = target
        return self.each.guard(caches.names[number], lambda: work(caches[number], target))

    def _failed_event(self, path: Path, error: TokpipeError) -> None:
        from tokpipe.export import ExportRecord

        record = ExportRecord([str(path)], str(self._target), self.name)
        emit("item", **record.to_dict(), error=error.to_dict())

    def _done(self, record: ExportRecord) -> None:
        from tokpipe_cli.render_export import show_export

        self.each.statuses.append(record.status)
        if self.screen.json:
            emit("item", **record.to_dict())
        self._tokens += record.tokens
        show_export(record, self.screen, alone=self._alone)


def _targets(
    names: list[Path], output: str | None, name: str, suffix: str, named: list[Path]
) -> list[Path]:
    """An output for each cache, no two alike."""
    from tokpipe.cache.dataset_info import is_dataset

    if output is None and any(is_dataset(p.parent) for p in names):
        raise UsageProblem("nothing is written into a dataset", hint="name a folder with -o")
    if output is not None and not suffix and len(names) == 1 and names[0] in named:
        # Of one cache that was named itself a folder is the output itself.
        return [Path(output)]
    return outputs_of(names, output, suffix or f".{name}", named)


def _media_of(cache: Path, source: Path) -> Path:
    """The media file of a cache: the one named, or the one of its name in the folder."""
    if not source.is_dir():
        return source
    from tokpipe.cache.reader import open_cache

    with open_cache(cache) as opened:
        return source / str(opened.info["name"])
