"""The vocabulary words nearest to a learned context, as in CoOp; distances are large, read them with care."""

from __future__ import annotations

from dassl_prompts.predict.run import TrainedRun


def nearest_words(run: TrainedRun, count: int = 3) -> list[dict]:
    """For every context token, the ``count`` nearest token embeddings by Euclidean distance.

    Returns:
        rows ``{"slot": 1.., ["class": name,] "words": [(word, distance), ...]}``; classes only for
        class-specific contexts.

    Raises:
        ValueError: the run has no text context.
    """
    import torch

    from dassl_prompts.ranking.exact import ordered_topk

    text = run.model.clip.text
    context = learned_context(run.model)
    if context is None:
        raise ValueError(f"{run.results['trainer']} has no learned context in front of the class name")
    table = text.token_embedding.weight.detach().float()
    per_class = context.ndim == 3
    rows = []
    for index, tokens in enumerate(context if per_class else [context]):
        nearness, ids = ordered_topk(-torch.cdist(tokens.detach().float(), table), count)
        for slot, (near, which) in enumerate(zip((-nearness).tolist(), ids.tolist()), 1):
            words = [(text.tokenizer.decode([i]).strip() or f"<{i}>", d) for d, i in zip(near, which)]
            rows.append({"slot": slot, **({"class": run.classnames[index]} if per_class else {}), "words": words})
    return rows


def learned_context(model):
    """The layer-0 context ``[n, d_t]`` or ``[C, n, d_t]``; None if there is none or images change it."""
    try:
        context = model.emit().text
    except ValueError:
        return None
    return context if context is not None and context.ndim in (2, 3) else None
