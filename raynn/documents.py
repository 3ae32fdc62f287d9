"""What a language model says of documents: how likely each is.

Shapes: B windows of a batch, T tokens, V vocabulary, N windows, D documents.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raynn.batches import evaluation_batches
from raynn.corpus import encoding_of, scored_characters, scoring_windows
from raynn.gradients import precision
from raynn.loop import evaluation_batch_rows
from raynn.objectives import token_losses
from raynn.outputs import Trained, device_of, shard_of
from raynn.ragged import Ragged
from raynn.shards import Arrays


@torch.no_grad()
def document_columns(run: Trained, tokens: Any) -> dict[str, pa.Array]:
    """Of each document: nats, and the tokens and characters that they are of; perplexity, null where no token is
    predicted.
    """
    plan = scoring_windows(tokens.start_N, tokens.stop_N, run.preprocessing.window)
    windows = Ragged(tokens.values, plan.start_N, plan.stop_N)
    skip_N = plan.columns["skip"]
    characters_N = scored_characters(encoding_of(run.preprocessing), windows, skip_N)
    pieces: Arrays = {"tokens": windows, "skip": skip_N, "characters": characters_N}
    device = device_of(run)
    sums = [np.zeros((0, 2))]
    run.model.eval()
    for batch, key_B in evaluation_batches(
        shard_of(run, iter([pieces]), len(plan)), evaluation_batch_rows(run.job), device
    ):
        with precision(run.job, device):
            logits_BTV = run.model(batch, key_B)
        loss_BT, scored_BT = token_losses(logits_BTV.float(), batch)
        sums.append(torch.stack([(loss_BT.double() * scored_BT).sum(1), scored_BT.sum(1)], dim=1).cpu().numpy())
    document_N = np.searchsorted(tokens.stop_N, plan.start_N, side="right")
    per_document = partial(np.bincount, document_N, minlength=len(tokens))
    nats_D, tokens_D = (per_document(weights=column) for column in np.concatenate(sums).T)
    characters_D = per_document(weights=characters_N)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        perplexity_D = np.exp(nats_D / tokens_D)
    return {
        "nats": pa.array(nats_D),
        "tokens": pa.array(tokens_D.astype(np.int64)),
        "characters": pa.array(characters_D.astype(np.int64)),
        "perplexity": pa.array(perplexity_D, mask=tokens_D == 0),
    }
