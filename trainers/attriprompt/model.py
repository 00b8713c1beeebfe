"""AttriPrompt's model: visual attributes of an image choose and compose the prompts of its class texts."""

from __future__ import annotations

import torch
from torch import Tensor

from dassl_prompts.classification.prompted import PromptedCLIP, Prompts, normalize, place
from dassl_prompts.classification.templates import PROMPTSRC_TEMPLATES
from dassl_prompts.trainers.attriprompt import pool
from dassl_prompts.trainers.attriprompt.attributes import AttributeQueries, View
from dassl_prompts.trainers.attriprompt.options import NODE, check_options
from dassl_prompts.trainers.attriprompt.pool import PoolUsage, PromptPool, Retrieval, TupleMemo
from dassl_prompts.trainers.ivlp import check_depth, place_visual_prompts, visual_prompts


class AttriPromptModel(PromptedCLIP):
    """Prompt pool, retrieval and composition around a frozen CLIP.

    Args:
        clip: frozen CLIP; a vision transformer unless retrieval is static.
        classnames: classes to score.
        options: cfg.TRAINER.ATTRIPROMPT.
        template: hand-written text with one ``{}``; its words surround the class name.
    """

    checkpoint_name = "PromptPool"

    def __init__(self, clip, classnames, options, template="a photo of a {}."):
        super().__init__(clip, classnames)
        check_options(options)
        self.options = options
        self.depth = options.PROMPT_DEPTH or clip.text.layers
        check_depth(f"{NODE}.PROMPT_DEPTH", self.depth, clip.text.layers, least=1)
        # a cached run of the static variant uses the same views, so that the two can be compared
        self.attributes = None if self.static and not options.CACHE.DIR else self.build_attributes()
        clusters = options.CLUSTER.K if options.CLUSTER.METHOD == "kmeans" else 1
        self.slots = clusters * options.RETRIEVAL.TOP_K
        self.pool = self.build_pool()
        self.build_words(template)
        if options.PROMPT_DEPTH_VISION:
            place_visual_prompts(self, clip, options.N_CTX_VISION, options.PROMPT_DEPTH_VISION, "ATTRIPROMPT")
        self.usage = PoolUsage(self.depth, self.pool.size)
        self.memo = TupleMemo(options.TEXT.MEMO_MB << 20)
        self._text_target = None

    # -- building -------------------------------------------------------------------------------------------------

    @property
    def static(self) -> bool:
        """No retrieval: every layer has its own tokens, the same for all images (deep language prompting)."""
        return self.options.RETRIEVAL.MODE == "static"

    def build_attributes(self) -> AttributeQueries:
        c = self.options.CLUSTER
        return AttributeQueries(
            self.clip,
            self.depth,
            tokens=c.TOKENS,
            space=c.SPACE,
            method=c.METHOD,
            k=c.K,
            iters=c.ITERS,
            metric=c.METRIC,
            query=self.options.RETRIEVAL.QUERY,
        )

    def build_pool(self) -> PromptPool:
        p, width = self.options.POOL, self.clip.text.width
        if self.static:  # as many prompts as slots, used in order
            return PromptPool(self.depth, self.slots, p.LENGTH, width, per_layer=True, std=p.INIT_STD)
        return PromptPool(
            self.depth,
            p.SIZE,
            p.LENGTH,
            width,
            per_layer=p.PER_LAYER,
            key=p.KEY,
            query_width=self.attributes.width,
            std=p.INIT_STD,
        )

    def build_words(self, template: str) -> None:
        """The token ids around the slots, with and without prompts; ``words`` holds learnable ones."""
        if template.count("{}") != 1:
            raise ValueError(f"{NODE}.TEMPLATE must hold {{}} once for the class name, got {template!r}")
        before, suffix = template.split("{}")
        learn = self.options.CTX.LEARNABLE
        # learned words have to fit every dataset the model is moved to, so they do not follow the dataset's template
        words = self.options.CTX_INIT.replace("_", " ") or ("a photo of a" if learn else before.strip())
        n_ctx = self.slots * self.options.POOL.LENGTH
        text = self.clip.text
        if learn:
            place(self, "words", text.embed_words(words))
        free = n_ctx + len(self.words) if learn else n_ctx
        try:
            self.class_prompts = text.class_prompts(self.classnames, free, "" if learn else words, suffix)
        except ValueError as error:
            raise ValueError(
                f"{error} -- AttriPrompt puts {n_ctx} prompt tokens (CLUSTER.K x RETRIEVAL.TOP_K x POOL.LENGTH) in front: lower "
                f"one of these keys of {NODE}"
            ) from error
        self.plain_prompts = text.class_prompts(self.classnames, 0, words, suffix)

    # -- retrieval and composition ------------------------------------------------------------------------------------

    @property
    def prompts_images(self) -> bool:
        return self.options.PROMPT_DEPTH_VISION > 0

    def visual_prompts(self) -> Prompts:
        vision, deep = visual_prompts(self, self.options.PROMPT_DEPTH_VISION)
        return Prompts(vision=vision, vision_deep=deep)

    def look(self, images: Tensor | View) -> View:
        """Feature and attribute queries of images, or of the rows ``[B, R]`` that hold them; a view passes through."""
        if isinstance(images, View):
            return images
        if images.ndim == 2 and self.attributes is not None:
            return self.attributes.view_of(images)
        if self.attributes is None:
            return View(self.encode_images(images, self.visual_prompts()), None)
        return self.attributes(images, self.visual_prompts())

    def retrieve(self, view: View) -> Retrieval | None:
        """Prompts for every image and layer; None when static. Training queries enter the running mean first."""
        if self.static:
            return None
        r = self.options.RETRIEVAL
        if self.training and r.CENTER:
            self.pool.observe(view.queries)
        similarity = self.pool.similarity(view.queries, r.CENTER)
        retrieval = (
            pool.mix(similarity, r.TEMPERATURE)
            if r.WEIGHTING == "softmax"
            else (pool.retrieve(similarity, r.TOP_K, r.MODE))
        )
        self.usage.update(retrieval.index)
        return retrieval

    def emit(self) -> Prompts:
        """The prompts of the static variant."""
        if not self.static:
            raise ValueError("AttriPrompt composes its prompts per image: call the model, or retrieve() and compose()")
        return self.text_prompts(self.pool.prompts.flatten(1, 2))

    def compose(self, retrieval: Retrieval) -> Prompts:
        """Per-image contexts ``[B, 1, n, d]`` for every prompted layer."""
        return self.text_prompts(self.pool.compose(retrieval, self.options.RETRIEVAL.WEIGHTING)[:, :, None].unbind(1))

    def text_prompts(self, layers) -> Prompts:
        first, *deep = layers
        if self.options.CTX.LEARNABLE:
            first = torch.cat([first, self.words.expand(*first.shape[:-2], -1, -1)], dim=-2)
        return Prompts(text=first, text_deep=tuple(deep))

    def encode(self, retrieval: Retrieval | None) -> Tensor:
        """Normalised text features of all classes: ``[B, C, E]``, or ``[C, E]`` when static."""
        if retrieval is None:
            return self.encode_classes(self.emit()) if torch.is_grad_enabled() else self.class_features()
        if not self.options.TEXT.MEMO or self.options.RETRIEVAL.WEIGHTING != "none":
            return self.encode_classes(self.compose(retrieval))
        index = retrieval.index
        if self.options.COMPOSE == "replace":
            index = pool.order_free(index, self.clip.text.layers)
        unique, inverse = index.flatten(1).unique(dim=0, return_inverse=True)
        unique = unique.view(-1, *index.shape[1:])
        encode = lambda tuples: self.encode_classes(self.compose(Retrieval(tuples, None)))
        if torch.is_grad_enabled():
            return encode(unique)[inverse]
        self.memo.images += len(index)
        version = tuple((p.data_ptr(), p._version) for p in self.prompt_parameters())
        return self.memo.lookup(unique, encode, version)[inverse]

    def encode_classes(self, prompts: Prompts, index: Tensor | None = None) -> Tensor:
        t = self.options.TEXT
        classes = self.class_prompts if index is None else self.class_prompts.select(index)
        return normalize(self.clip.text(
            classes, prompts.text, prompts.text_deep, share_prefix=t.SHARE_PREFIX, trim=t.TRIM,
            chunk_tokens=t.CHUNK_TOKENS or None, checkpoint=t.CHECKPOINT, accumulate=self.options.COMPOSE == "accumulate",
        ))  # fmt: skip

    def forward(self, images: Tensor | View) -> Tensor:
        view = self.look(images)
        return self.logits(view.feature, self.encode(self.retrieve(view)))

    # -- text without retrieval ---------------------------------------------------------------------------------------

    def plain_text(self) -> Tensor:
        """The unretrieved stream: class features ``[C, E]`` with the mean of the pool in every slot."""
        return self.encode_classes(self.text_prompts(self.pool.mean_prompt(self.slots)))

    @property
    def text_target(self) -> Tensor:
        """Non-prompted class features ``[C, E]`` of the frozen CLIP: the template's, or the mean of PromptSRC's 60."""
        if self._text_target is None:
            views = [self.plain_prompts]
            if self.options.REG.TEMPLATES == "ensemble":
                texts = ([t.format(name) for name in self.classnames] for t in PROMPTSRC_TEMPLATES)
                views = [self.clip.text.prompts_from_texts(view) for view in texts]
            with torch.no_grad(), torch.autocast(self.scale.device.type, enabled=False):
                self._text_target = normalize(sum(self.clip.text(view) for view in views))
        return self._text_target
