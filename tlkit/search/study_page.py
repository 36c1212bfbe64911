"""study.html: what a search has tried, on one page without outside resources."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlkit.files import write_atomically
from tlkit.recipe.fields.search import Range
from tlkit.report.templates import template

if TYPE_CHECKING:
    import optuna

BEST_SHARE = 0.2
"""Of the finished trials: the ranges that hold them are where the next search should look."""


def write_study_page(study: "optuna.Study", best: "tuple[optuna.trial.FrozenTrial, int]", ranges: Mapping[str, Range], file: Path) -> None:
    """Write history, importance of each key, slices and narrowed ranges. best: the trial, and how many have its score."""
    from plotly.offline import get_plotlyjs

    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.value is not None and trial.state.name == "COMPLETE"]
    page = template("study.html", "search").render(
        name=study.study_name,
        best=best[0],
        equal=best[1],
        finished=len(trials),
        pruned=sum(trial.state.name == "PRUNED" for trial in study.get_trials(deepcopy=False)),
        plots=list(_plots(study, trials)),
        narrowed=list(narrowed_ranges(trials, ranges)),
        plotly=get_plotlyjs(),
    )
    write_atomically(file, page)


def narrowed_ranges(trials: "list[optuna.trial.FrozenTrial]", ranges: Mapping[str, Range]) -> Iterator[tuple[str, str, str]]:
    """Yield key, range searched, and what holds the best fifth of the finished trials (at least two)."""
    best = sorted(trials, key=lambda trial: -(trial.value or 0.0))[: max(2, round(BEST_SHARE * len(trials)))]
    for key, values in ranges.items():
        found = [trial.params[key] for trial in best if key in trial.params]
        if values.choice is not None:
            counts = {choice: found.count(choice) for choice in dict.fromkeys(found)}
            yield key, f"{len(values.choice)} choices", ", ".join(f"{choice} ({count}x)" for choice, count in counts.items())
        elif found:
            yield key, f"{values.ends[0]:g} to {values.ends[1]:g}", f"{min(found):.3g} to {max(found):.3g}"


def _plots(study: "optuna.Study", trials: "list[optuna.trial.FrozenTrial]") -> Iterator[dict[str, Any]]:
    from optuna import visualization

    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}  # beside a plot it would take half of a telephone
    paper = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"}
    margin = {"l": 60, "r": 20, "t": 40, "b": 50}
    layout = {"template": "plotly_white", "title": None, "margin": margin, "height": 380, "legend": legend, **paper}
    drawn: dict[str, Callable[..., Any]] = {
        "History": visualization.plot_optimization_history,
        "Each value alone": visualization.plot_slice,
    }
    if len(trials) > 2 and len({trial.value for trial in trials}) > 1 and len(trials[0].params) > 1:
        drawn["Importance of each key (fANOVA)"] = visualization.plot_param_importances
    config = {"displayModeBar": False, "responsive": True}
    for heading, draw in drawn.items():
        figure = draw(study, target_name="validation score").update_layout(**layout)
        if heading == "History":
            figure.update_xaxes(title="trial, counted from 0 as Optuna does")
        html = figure.to_html(full_html=False, include_plotlyjs=False, config=config)
        yield {"heading": heading, "html": html, "wide": draw is visualization.plot_slice}
