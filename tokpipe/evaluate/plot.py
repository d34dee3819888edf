"""A plot of coverage over tokens; takes matplotlib (the extra ``eval``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokpipe.errors import MissingExtra
from tokpipe.evaluate.report import EvalReport, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Colour and line of what every plot has; recipes take the colours after.
_BASELINES = {
    "oracle": ("#222222", "--"),
    "uniform": ("#888888", "-"),
    "random": ("#bbbbbb", ":"),
    "downsampled": ("#b8a060", "-."),
}
#: Colours that people who see few colours can tell apart (Okabe and Ito).
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#000000")


def require_matplotlib() -> None:
    """Raise MissingExtra where matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtra(
            "plots need matplotlib, which is not installed", hint='pip install "tokpipe[eval]"'
        ) from error


def write_plot(report: EvalReport, path: str | Path) -> Path:
    """Draw coverage over tokens for every way, one panel for each kind of features.

    Args:
        path: File; its suffix (``.svg``, ``.png``, ``.pdf``) says what is written.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The same report gives the same bytes: no date, and names that do not depend on the run.
    with mpl.rc_context({"svg.hashsalt": "tokpipe", "font.size": 10}):
        panels = len(report.features)
        figure = Figure(figsize=(2.4 + 5.6 * panels, 4.6), layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        for ax, features in zip(axes, report.features, strict=True):
            _panel(ax, report, features)
        axes[0].set_ylabel("coverage (mean best cosine)")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False)
        figure.suptitle(f"{Path(report.input).name}: {report.dense_frames} dense frames")
        still: dict[str, Any] = {"metadata": {"Date": None}} if target.suffix == ".svg" else {}
        figure.savefig(target, dpi=120, **still)
    return target


def _panel(ax: Axes, report: EvalReport, features: str) -> None:
    ways = list(dict.fromkeys((row.kind, row.way) for row in report.rows))
    own = [way for way in ways if way[0] in ("recipe", "storyboard")]
    for kind, name in [*own, *(way for way in ways if way not in own)]:
        rows = [r for r in report.rows if (r.kind, r.way) == (kind, name)]
        rows.sort(key=lambda r: r.tokens)
        x, y = [r.tokens for r in rows], [r.coverage[features].mean for r in rows]
        style: dict[str, Any] = {"linewidth": 1.4, "marker": "."}
        if (kind, name) in own:
            colour = _COLOURS[own.index((kind, name)) % len(_COLOURS)]
            style = {"color": colour, "linewidth": 2, "marker": "o", "zorder": 3}
        else:
            style["color"], style["linestyle"] = _BASELINES[name]
        ax.plot(x, y, label=_label(rows[0]), **style)
    ticks = sorted({r.tokens: r.budget for r in report.rows}.items())
    ax.set_xscale("log", base=2)
    ax.set_xticks([t for t, _ in ticks], [_tick(t, b) for t, b in ticks])
    ax.minorticks_off()
    ax.set_xlabel("budget in tokens")
    ax.set_title(features, fontsize=10)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)


def _label(row: Row) -> str:
    return f"{row.way} (baseline)" if row.kind == "baseline" else row.way


def _tick(tokens: int, budget: str) -> str:
    return f"{tokens:,}\n{budget}" if budget.endswith("f") else f"{tokens:,}"
