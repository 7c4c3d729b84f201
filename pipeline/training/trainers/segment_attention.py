"""Attention over a row of segments: a batch's rows one after the other, or prompts and answers.

Each token of a segment sees what precedes it there, and the whole of the segment that it continues.
What no token sees is not computed, as it would be under a mask of the whole row. A segment is one
call of sdpa: right for a CPU, where a call costs little.
"""

from dataclasses import dataclass
from typing import Any

import torch

SEGMENTS = "sdpa_by_segments"  # our name among transformers' kinds of attention


@dataclass(frozen=True)
class Segment:
    length: int
    continues: int | None = None  # the number of an earlier segment


def register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(SEGMENTS, attend)
    AttentionMaskInterface.register(SEGMENTS, sdpa_mask)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    segments: list[Segment] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it. Without segments it is sdpa."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    lengths = [segment.length for segment in segments]
    queries, keys, values = (each.split(lengths, dim=2) for each in (query, key, value))
    outputs = []
    for own, segment in enumerate(segments):
        seen, mask = [keys[own], values[own]], None
        if (before := segment.continues) is not None:
            seen = [torch.cat([each[before], each[own]], dim=2) for each in (keys, values)]
            shape = segment.length, lengths[before] + segment.length
            mask = query.new_ones(shape, dtype=torch.bool).tril(lengths[before])
        output, _ = sdpa_attention_forward(module, queries[own], *seen, mask, **kwargs)
        outputs.append(output)
    return torch.cat(outputs, dim=1), None
