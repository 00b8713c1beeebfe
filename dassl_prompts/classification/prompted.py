"""A frozen CLIP with learnable prompts: what every classification method of this project is.

A method subclasses :class:`PromptedCLIP`, registers its learnable tensors under their official checkpoint names and says in
``emit()`` which vectors they put into the prompt slots of the two towers. Everything else (encoding classes and images,
logits, the class matrix kept during evaluation) is shared. Keeping *leaves* (parameters) apart from *emitted prompts*
(:class:`Prompts`) is what lets DPC mix two prompts without knowing the method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Prompts:
    """Vectors for the prompt slots of both towers.

    Attributes:
        text: layer-0 context tokens: ``[n, d_t]`` shared, ``[C, n, d_t]`` per class, ``[B, 1, n, d_t]`` per image, or None.
        text_deep: ``J - 1`` tensors of the same kinds that overwrite the slots at the input of text blocks 1 .. J-1; None
            leaves them as they are.
        vision: layer-0 visual tokens ``[n, d_v]`` or ``[B, n, d_v]``, or None.
        vision_deep: tensors that overwrite the visual slots at the input of vision blocks 1 .. J-1.
    """

    text: Tensor | None = None
    text_deep: tuple[Tensor | None, ...] = ()
    vision: Tensor | None = None
    vision_deep: tuple[Tensor, ...] = ()

    @property
    def has_vision(self) -> bool:
        return self.vision is not None

    def map(self, fn: Callable[..., Tensor], *others: Prompts) -> Prompts:
        """Apply ``fn`` slot by slot to this and the other prompts, which must have the same slots."""
        slot = lambda *items: None if items[0] is None else fn(*items)
        columns = [[getattr(p, f.name) for p in (self, *others)] for f in fields(self)]
        out = []
        for column in columns:
            if isinstance(column[0], tuple):
                if len({len(c) for c in column}) != 1:
                    raise ValueError(f"prompts of different depth cannot be combined: {[len(c) for c in column]}")
                out.append(tuple(slot(*items) for items in zip(*column)))
            else:
                out.append(slot(*column))
        return Prompts(*out)


def place(module: nn.Module, name: str, tensor: Tensor, *, learnable: bool = True) -> None:
    """Register ``tensor`` under a dotted name, creating the containers on the way.

    Official checkpoints carry names such as ``text_encoder.transformer.resblocks.1.VPT_shallow`` that mirror where a patched
    CLIP keeps its prompts. Our towers are not patched, so the names live in a tree of empty modules.
    """
    *path, leaf = name.split(".")
    for part in path:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module._modules[part]
    if learnable:
        module.register_parameter(leaf, nn.Parameter(tensor.detach().clone().float()))
    else:
        module.register_buffer(leaf, tensor.detach().clone())


def normalize(x: Tensor) -> Tensor:
    """L2-normalise the last dimension, in fp32."""
    return F.normalize(x.float(), dim=-1)


class PromptedCLIP(nn.Module):
    """Frozen CLIP plus learnable prompts, for a fixed list of classes.

    Args:
        clip: a model from :func:`dassl_prompts.models.load_clip`; shared and never changed.
        classnames: the classes to score; underscores stand for spaces.

    Subclasses set ``self.class_prompts`` (a ``ClassPrompts`` for ``classnames``) and implement :meth:`emit`.
    """

    #: name under which the official code registers the model, hence the checkpoint folder
    checkpoint_name = "prompt_learner"
    #: "end", "middle" or "front" (CoOp's CLASS_TOKEN_POSITION)
    class_position = "end"

    def __init__(self, clip: nn.Module, classnames: Sequence[str]):
        super().__init__()
        if not classnames:
            raise ValueError("a model needs at least one class name")
        self.clip = clip
        self.classnames = [name.replace("_", " ") for name in classnames]
        self.class_prompts = None
        self._cache_key = None
        self._cache = None

    # -- what a method defines ------------------------------------------------------------------------------------

    def emit(self) -> Prompts:
        """The prompt vectors that the current parameters stand for."""
        raise NotImplementedError

    # -- what all methods share -----------------------------------------------------------------------------------

    @property
    def scale(self) -> Tensor:
        """exp(logit_scale), frozen, fp32."""
        return self.clip.logit_scale.float().exp()

    @property
    def checkpoint_module(self) -> nn.Module:
        """The module that the official code registers with Dassl; its parameter names are the checkpoint's keys."""
        return self

    @property
    def prompts_images(self) -> bool:
        """Whether the image tower has prompts."""
        return self.emit().has_vision

    @property
    def class_tensors(self) -> frozenset[str]:
        """Names in a checkpoint of tensors whose rows belong to the classes, one each."""
        return frozenset()

    def frozen_digests(self) -> dict[str, str]:
        """What the frozen networks are that the prompts belong to, by name: a digest ("" for random weights), the activation."""
        return {"backbone": self.clip.digest, "activation": self.clip.activation}

    def prompt_parameters(self) -> list[nn.Parameter]:
        """All parameters outside the frozen CLIP."""
        return [p for name, p in self.named_parameters() if not name.startswith("clip.")]

    def prompts_for(self, images: Tensor, prompts: Prompts) -> Prompts:
        """The text prompts to score ``images`` (normalised features ``[B, E]``) with; a method may shift them per image."""
        return prompts

    def text_features(self, prompts: Prompts, index: Tensor | None = None) -> Tensor:
        """Text features ``[C, E]`` (``[B, C, E]`` for per-image prompts), not normalised, of all classes or those in
        ``index``."""
        classes = self.class_prompts
        text = prompts.text
        deep = prompts.text_deep
        if index is not None:
            classes = classes.select(index)
            per_class = lambda t: t[index.to(t.device)] if t is not None and t.ndim == 3 else t
            text, deep = per_class(text), tuple(per_class(t) for t in deep)
        return self.clip.text(classes, text, deep, position=self.class_position)

    def image_features(self, images: Tensor, prompts: Prompts) -> Tensor:
        """Image features ``[B, E]``, not normalised; frozen unless the method has visual prompts.

        Args:
            images: ``[B, 3, S, S]``, or ``[B, E]`` that are the frozen tower's features already.
        """
        if images.ndim == 2 and not prompts.has_vision:
            return images
        if prompts.has_vision:
            return self.clip.vision(images, prompts.vision, prompts.vision_deep)
        return self.clip.encode_image(images)

    def encode_classes(self, prompts: Prompts, index: Tensor | None = None) -> Tensor:
        """:meth:`text_features`, normalised."""
        return normalize(self.text_features(prompts, index))

    def encode_images(self, images: Tensor, prompts: Prompts) -> Tensor:
        """:meth:`image_features`, normalised."""
        return normalize(self.image_features(images, prompts))

    def cache_key(self) -> tuple:
        """What the class matrix depends on: the prompts, and where the model is.

        The temperature stands for the frozen CLIP: it tells when the model was moved, also without learned parameters.
        """
        return tuple((p.data_ptr(), p._version) for p in (self.clip.logit_scale, *self.prompt_parameters()))

    def class_features(self) -> Tensor:
        """The class matrix ``[C, E]`` for evaluation: computed once and kept until :meth:`cache_key` changes."""
        key = self.cache_key()
        if self._cache is None or key != self._cache_key:
            with torch.no_grad():
                self._cache = self.encode_classes(self.emit())
            self._cache_key = key
        return self._cache

    def train(self, mode: bool = True) -> PromptedCLIP:
        self._cache = None
        return super().train(mode)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised features of images ``[B, E]`` and of the classes ``[C, E]`` (``[B, C, E]``) to score them against.

        Under ``no_grad`` the class matrix is taken from :meth:`class_features`.
        """
        prompts = self.emit()
        image = self.encode_images(images, prompts)
        return image, self.classes_for(image, prompts)

    def classes_for(self, images: Tensor, prompts: Prompts) -> Tensor:
        """The class features that :meth:`features` gives for normalised image features."""
        own = self.prompts_for(images, prompts)
        if own is prompts and not torch.is_grad_enabled():
            return self.class_features()
        return self.encode_classes(own)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, C]`` in fp32."""
        return self.logits(*self.features(images))

    def logits(self, images: Tensor, text: Tensor) -> Tensor:
        """``s V T^T`` from normalised features; ``text`` is ``[C, E]`` or, per image, ``[B, C, E]``."""
        with torch.autocast(images.device.type, enabled=False):
            if text.ndim == 3:
                return self.scale * torch.einsum("be,bce->bc", images.float(), text.float())
            return self.scale * images.float() @ text.float().t()
