"""The node that compares mattes with the truth."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

from comfy.model_management import throw_exception_if_processing_interrupted
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..mam_model import view
from . import sockets
from .batch import frame_of, in_steps, masks, pair_count
from .previews import show

if TYPE_CHECKING:
    from ..mam_model.metrics import MatteScores

_ERRORS = ("sad", "mse", "mad", "grad", "conn")
# Rows of a longer table could not be read on the node.
_MOST_SHOWN = 24


class MatteMetrics(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MAM_MatteMetrics",
            display_name="Measure Matte",
            category=sockets.CATEGORY,
            description=(
                "Compares mattes with true ones: SAD, MSE, MAD, Grad and Conn in the units of the field, over the "
                "whole picture or a trimap's unknown band, and IMQ for the instances of one picture."
            ),
            search_aliases=["sad", "mse", "mad", "matte error", "evaluate matte", "compare masks", "imq", "metrics"],
            is_output_node=True,
            inputs=[
                io.Mask.Input("alpha", tooltip="The matte to judge, one or a batch."),
                io.Mask.Input("truth", tooltip="The true alpha, one or as many."),
                io.Mask.Input(
                    "trimap", optional=True, tooltip="Measure only in its unknown band, the part between 0 and 1."
                ),
                io.Combo.Input(
                    "compare",
                    options=["frame by frame", "instances of one picture"],
                    default="frame by frame",
                    optional=True,
                    tooltip=(
                        "frame by frame: matte with truth of the same number; a batch gives the mean. instances of "
                        "one picture: both batches are its subjects, in any order; gives IMQ."
                    ),
                ),
            ],
            outputs=[
                io.Float.Output("sad", tooltip="Sum of absolute differences, in thousands. 0 is perfect."),
                io.Float.Output("mse", tooltip="Mean squared difference, in thousandths. 0 is perfect."),
                io.Float.Output("mad", tooltip="Mean absolute difference, in thousandths. 0 is perfect."),
                io.Float.Output("grad", tooltip="Gradient error, in thousands. 0 is perfect."),
                io.Float.Output("conn", tooltip="Connectivity error, in thousands. 0 is perfect."),
                io.Float.Output("imq", tooltip="Instance matting quality by MAD, 0 to 1, more is better; else 0."),
                io.String.Output("table", tooltip="All numbers as text."),
            ],
        )

    @classmethod
    def execute(
        cls, alpha: Tensor, truth: Tensor, trimap: Tensor | None = None, compare: str = "frame by frame"
    ) -> io.NodeOutput:
        alpha, truth = masks(alpha), masks(truth)
        _check_sizes(alpha, truth, "truth")
        if compare == "instances of one picture":
            if trimap is not None:
                raise ValueError(
                    "IMQ judges whole subjects and has no use for a trimap: disconnect it, or compare frame by frame."
                )
            return _compare_instances(alpha, truth)
        return _compare_frames(alpha, truth, None if trimap is None else masks(trimap))


def _compare_frames(alpha: Tensor, truth: Tensor, trimap: Tensor | None) -> io.NodeOutput:
    from ..mam_model.metrics import EmptyBandError, score_matte

    batches = {"alpha": alpha, "truth": truth}
    if trimap is not None:
        _check_sizes(alpha, trimap, "trimap")
        batches["trimap"] = trimap
    count = pair_count(**batches)
    scores, without_band = {}, None
    for index in in_steps(count):
        frames = [frame_of(batch, index).float() for batch in batches.values()]
        try:
            everywhere, band = score_matte(*frames)
        except EmptyBandError as error:
            # In a clip that is a frame without the subject.
            without_band = error
        except ValueError as error:
            raise ValueError(f"Frame {index}: {error}" if count > 1 else str(error)) from None
        else:
            scores[index] = band or everywhere
    if not scores:
        raise without_band
    means = [fmean(getattr(score, error) for score in scores.values()) for error in _ERRORS]
    rows = [("", *(error.upper() for error in _ERRORS))]
    rows += [(f"frame {index}", *_cells(scores.get(index))) for index in range(count)]
    if count > 1:
        rows.append(("mean", *(f"{mean:.3f}" for mean in means)))
    shown = rows
    if count > _MOST_SHOWN:
        worst = sorted(scores, key=lambda index: scores[index].sad, reverse=True)[:_MOST_SHOWN]
        shown = [(f"worst of {count}", *rows[0][1:]), *(rows[1 + index] for index in worst), rows[-1]]
    return _result(rows, *means, imq=0.0, shown=shown)


def _cells(score: MatteScores | None) -> tuple[str, ...]:
    if score is None:
        return "no band", *[""] * (len(_ERRORS) - 1)
    return tuple(f"{getattr(score, error):.3f}" for error in _ERRORS)


def _compare_instances(alpha: Tensor, truth: Tensor) -> io.NodeOutput:
    from ..mam_model.metrics import instance_matting_quality

    # A matte that is 0 everywhere stands for a frame without subjects, not for a subject.
    present = [batch[batch.flatten(1).amax(dim=1) > 0].float() for batch in (alpha, truth)]
    quality = instance_matting_quality(
        *present, support_above=0.5 / 255, before_pair=throw_exception_if_processing_interrupted
    )
    rows = [
        ("", "MAD", "MSE", "GRAD", "CONN"),
        ("IMQ by", *(f"{value:.4f}" for value in (quality.mad, quality.mse, quality.grad, quality.conn))),
        ("matched", str(quality.tp), "invented", str(quality.fp), f"missed {quality.fn}"),
    ]
    return _result(rows, 0.0, 0.0, 0.0, 0.0, 0.0, imq=quality.mad, shown=rows)


def _result(rows: list[tuple[str, ...]], *errors: float, imq: float, shown: list[tuple[str, ...]]) -> io.NodeOutput:
    table = "\n".join("\t".join(row) for row in rows)
    return io.NodeOutput(*errors, imq, table, ui=show([view.text_table(shown)]))


def _check_sizes(alpha: Tensor, other: Tensor, name: str) -> None:
    if alpha.shape[1:] != other.shape[1:]:
        raise ValueError(
            f"The alpha is {alpha.shape[2]} x {alpha.shape[1]} pixels but the {name} is {other.shape[2]} x "
            f"{other.shape[1]}. A matte can only be measured at its own size; resize one of them."
        )


NODES = [MatteMetrics]
