"""`curves.png`: a training's metrics.jsonl as one picture. The same rows give the same bytes."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
Points = tuple[list[int], list[float]]

FILE = "curves.png"
BLUE, ORANGE, GREEN, GREY, INK = "#0072b2", "#d55e00", "#009e73", "#9a9a9a", "#333333"
SMOOTHING_STEPS = 40  # from this many steps on a training curve also shows its running mean


@dataclass(frozen=True, slots=True)
class CurveLine:
    """One metric of every step, or of every evaluation, which is drawn with its points."""

    figure: str
    label: str
    color: str

    @property
    def is_evaluation(self) -> bool:
        return self.figure.startswith("eval_")


@dataclass(frozen=True, slots=True)
class CurvePanel:
    title: str
    lines: tuple[CurveLine, ...]
    level: float | None = None  # the value before anything is learned


PANELS = (
    CurvePanel("Loss", (CurveLine("loss", "train", GREY), CurveLine("eval_loss", "dev", BLUE))),
    CurvePanel(
        "Pairs ranked correctly",
        (
            CurveLine("rewards/accuracies", "train", GREY),
            CurveLine("eval_rewards/accuracies", "dev", BLUE),
        ),
        level=0.5,
    ),
    CurvePanel(
        "Margin",
        (
            CurveLine("rewards/margins", "train", GREY),
            CurveLine("eval_rewards/margins", "dev", BLUE),
        ),
        level=0.0,
    ),
    CurvePanel(
        "Reward of both answers, dev pairs",
        (
            CurveLine("eval_rewards/chosen", "chosen", GREEN),
            CurveLine("eval_rewards/rejected", "rejected", ORANGE),
        ),
        level=0.0,
    ),
    CurvePanel("Reward of sampled answers", (CurveLine("reward", "train", GREY),)),
    CurvePanel("KL to the reference, nats", (CurveLine("eval_kl", "", BLUE),), level=0.0),
    CurvePanel("Length of generated answers, tokens", (CurveLine("eval_tokens", "", BLUE),)),
    CurvePanel("NLL of rehearsed demonstrations", (CurveLine("rehearsal/nll", "", GREY),)),
    CurvePanel("Score of generated answers", (CurveLine("eval_score", "", BLUE),)),
)


def draw(rows: Sequence[Row], kept: int, out: Path) -> None:
    """Leave out panels without data. A dashed line is the step whose weights are published."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [
        panel for panel in PANELS if any(_collect_points(rows, line)[0] for line in panel.lines)
    ]
    across = 3 if len(shown) < 7 else 4
    down = -(-len(shown) // across)
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE}):
        figure = Figure(figsize=(3.7 * across, 0.4 + 2.6 * down), dpi=110)
        _place_panels(figure, across, down)
        for number, panel in enumerate(shown):
            axes = figure.add_subplot(down, across, number + 1)
            _draw_panel(axes, panel, rows, kept, first=number == 0)
            if number + across >= len(shown):
                axes.set_xlabel("optimizer step")
            if number == 0 or len(panel.lines) > 1:
                axes.legend(loc="best", handlelength=1.4)
        buffer = io.BytesIO()
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    write_atomically(out / FILE, buffer.getvalue())


def _place_panels(figure: "Figure", across: int, down: int) -> None:
    """With room for the longest numbers: matplotlib's own layouts measure every text, which takes
    longer than to draw the picture.
    """
    width, height = figure.get_size_inches()
    left, right, bottom, top, above = 0.7, 0.15, 0.55, 0.3, 0.6  # inches
    panel_width = width / across - left - right
    panel_height = (height - bottom - top + above) / down - above
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        bottom=bottom / height,
        top=1 - top / height,
        wspace=(left + right) / panel_width,
        hspace=above / panel_height,
    )


_STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


def _draw_panel(
    axes: "Axes", panel: CurvePanel, rows: Sequence[Row], kept: int, first: bool
) -> None:
    last = max(row["step"] for row in rows)
    axes.set_title(panel.title)
    axes.set_xlim(-0.02 * last, 1.02 * last)
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)  # type: ignore[call-arg]
    if panel.level is not None:
        axes.axhline(panel.level, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)))
    if kept != last:
        label = f"published: step {kept}" if first else ""
        axes.axvline(kept, color=INK, linewidth=0.8, linestyle="--", label=label)
    for line in panel.lines:
        _draw_line(axes, line, *_collect_points(rows, line))


def _draw_line(axes: "Axes", line: CurveLine, steps: list[int], values: list[float]) -> None:
    if line.is_evaluation:
        style: dict[str, Any] = {"linewidth": 1.6, "marker": "o", "markersize": 3.5}
    elif len(steps) < SMOOTHING_STEPS:
        style = {"linewidth": 1.2}
    else:
        axes.plot(steps, values, color=line.color, linewidth=0.6, alpha=0.4)
        values = _running_mean(values, SMOOTHING_STEPS // 2)
        style = {"linewidth": 1.4}
    axes.plot(steps, values, color=line.color, label=line.label, **style)


def _running_mean(values: list[float], width: int) -> list[float]:
    parts = [values[max(0, at - width + 1) : at + 1] for at in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def _collect_points(rows: Sequence[Row], line: CurveLine) -> Points:
    found = [(row["step"], row[line.figure]) for row in rows if row.get(line.figure) is not None]
    return [step for step, _ in found], [value for _, value in found]
