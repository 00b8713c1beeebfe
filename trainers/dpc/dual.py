"""Two prompts of one method side by side, and their mixtures (DPC's weighting-decoupling module).

``tuned`` is the prompt P of stage 1, frozen; ``parallel`` is P', its clone that stage 2 trains. Mixtures are taken of the
prompt *vectors* that enter the encoders, never of features: F(X) = w X + (1 - w) P.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn as nn
from torch import Tensor
from torch.func import functional_call

from dassl_prompts.classification.prompted import PromptedCLIP, Prompts
from dassl_prompts.engine import learned_tensors
from dassl_prompts.trainers.dpc.union import join


def clone_prompts(net: PromptedCLIP) -> PromptedCLIP:
    """A copy of a method's model with its own prompts and the same frozen towers."""
    from dassl_prompts.models.clip import CLIP

    shared = {id(module): module for module in net.modules() if isinstance(module, CLIP)}
    return copy.deepcopy(net, shared)


class _Emit(nn.Module):
    """Lets ``functional_call`` reach ``emit``."""

    def __init__(self, net: PromptedCLIP):
        super().__init__()
        self.net = net

    def forward(self) -> Prompts:
        return self.net.emit()


def emit_with(net: PromptedCLIP, leaves: dict[str, Tensor]) -> Prompts:
    """What ``net`` would emit if its parameters had these values."""
    return functional_call(_Emit(net), {f"net.{name}": value for name, value in leaves.items()}, ())


@torch.no_grad()
def reset_deep_prompts(net: PromptedCLIP) -> None:
    """Restart the learned deep prompts from N(0, 0.02^2), as the released PromptKD code of DPC does by mistake."""
    prompts = net.emit()
    for tokens in (*prompts.text_deep, *prompts.vision_deep):
        if isinstance(tokens, nn.Parameter):
            tokens.normal_(std=0.02)


def mix(x: Tensor, p: Tensor, omega: float) -> Tensor:
    """F(x) = omega x + (1 - omega) p."""
    return omega * x + (1 - omega) * p


class DualPrompts(PromptedCLIP):
    """P and P' of one method, evaluated as the mixture that the task asks for.

    Args:
        tuned: the method's model; becomes P and is frozen.
        omega_b, omega_n: weight of P' for base and for new classes, in [0, 1].
        task: "base", "new", or "union": base columns under the prompts of base classes, the others under those of new ones.
        param: "parallel" trains P' itself; "mixed" trains theta = F(P') and recovers P' = P + (theta - P) / omega_b with
            the omega_b of the training, ``theta_omega``, whatever omega_b is at inference.
        train_forward: "parallel" trains with P', "mixed" with F(P').
        scope: "all" mixes every prompt vector; "text" only the text tower's layer-0 context, the rest follows P'.
        new_text: "mixed" mixes the text prompts of new classes like the visual ones; "tuned" keeps P's.
        mix_leaves: mix the parameters instead of the vectors they emit (they differ where the map is bilinear, as in MaPLe).
        union: how :func:`~dassl_prompts.trainers.dpc.union.join` makes the two scores comparable.
    """

    def __init__(
        self,
        tuned: PromptedCLIP,
        omega_b: float = 0.2,
        omega_n: float = 0.0,
        task: str = "base",
        param: str = "parallel",
        train_forward: str = "parallel",
        scope: str = "all",
        mix_leaves: bool = False,
        new_text: str = "mixed",
        union: str = "gate",
    ):
        super().__init__(tuned.clip, tuned.classnames)
        if param == "mixed" and omega_b == 0:
            raise ValueError("PARAM mixed cannot recover P' at OMEGA_B 0.0; use PARAM parallel")
        self.omega_b, self.omega_n, self.task = omega_b, omega_n, task
        self.param, self.train_forward = param, train_forward
        self.theta_omega, self.theta_scope = omega_b, scope
        self.scope, self.mix_leaves, self.new_text = scope, mix_leaves, new_text
        self.union, self.is_base = union, None
        self._union_key, self._union_text = None, None
        self.tuned = tuned
        self.parallel = clone_prompts(tuned)
        self.checkpoint_name = tuned.checkpoint_name
        self.class_prompts = tuned.class_prompts
        self.tuned.requires_grad_(False)
        self.tuned.eval()
        self._theta_names: tuple[str, set[str]] | None = None

    @property
    def checkpoint_module(self) -> nn.Module:
        return self.parallel.checkpoint_module

    @property
    def class_tensors(self):
        names = self.parallel.class_tensors
        return names | {f"tuned.{name}" for name in names}  # P lies beside P' in a checkpoint

    def frozen_digests(self):
        return self.tuned.frozen_digests()

    def train(self, mode: bool = True) -> DualPrompts:
        super().train(mode)
        self.tuned.eval()  # else P's BatchNorm statistics would follow the batches
        return self

    def prompt_parameters(self):
        return [*self.tuned.prompt_parameters(), *self.parallel.prompt_parameters()]

    def cache_key(self):
        weights = (self.task, self.omega_b, self.omega_n, self.scope, self.mix_leaves, self.new_text)
        return *super().cache_key(), *weights, self.param, self.theta_omega, self.theta_scope

    def learnable(self) -> dict[str, nn.Parameter]:
        """Names, relative to the method's model, and tensors that stage 2 trains."""
        return {name: p for name, p in self.parallel.named_parameters() if p.requires_grad}

    def mixed_names(self, scope: str) -> set[str]:
        """Names of the learnable tensors behind the prompt vectors that ``scope`` mixes; a projector is behind none.

        A tensor behind vectors inside and outside the scope, such as MaPLe's context under "text", counts as inside.
        """
        leaves = self.learnable()
        with torch.enable_grad():
            prompts = self.parallel.emit()
            inside = [prompts.text]
            if scope == "all":
                inside += [*prompts.text_deep, prompts.vision, *prompts.vision_deep]
            sums = [t.sum() for t in inside if t is not None and t.requires_grad]
            if not sums:
                return set()
            reached = torch.autograd.grad(sum(sums), list(leaves.values()), allow_unused=True)
        return {name for name, gradient in zip(leaves, reached) if gradient is not None}

    def _tuned_leaves(self) -> dict[str, Tensor]:
        tuned = dict(self.tuned.named_parameters())
        return {name: tuned[name] for name in self.learnable()}

    @torch.no_grad()
    def adopt(self, state: dict[str, Tensor] | None = None) -> None:
        """Make P what ``state`` holds, or else a copy of the present P'; names as in ``checkpoint_module``."""
        own = self.tuned.checkpoint_module.state_dict()
        source = self.checkpoint_module.state_dict() if state is None else state
        for name in self.learned_names():
            own[name].copy_(source[name])
        self._cache = self.tuned._cache = None

    def learned_names(self) -> list[str]:
        """What tells P from P': the learned tensors of ``checkpoint_module``."""
        return list(learned_tensors(self.checkpoint_module))

    # -- the prompts ----------------------------------------------------------------------------------------------

    def parallel_leaves(self) -> dict[str, Tensor]:
        """The parameters of P'; with ``param`` mixed those outside the scope of the training are trained as they are."""
        leaves = self.learnable()
        if self.param == "parallel":
            return leaves
        if self._theta_names is None or self._theta_names[0] != self.theta_scope:
            self._theta_names = self.theta_scope, self.mixed_names(self.theta_scope)
        tuned, names = self._tuned_leaves(), self._theta_names[1]
        return {
            name: tuned[name] + (theta - tuned[name]) / self.theta_omega if name in names else theta
            for name, theta in leaves.items()
        }

    def parallel_prompts(self) -> Prompts:
        """P' itself."""
        return self.parallel.emit() if self.param == "parallel" else emit_with(self.parallel, self.parallel_leaves())

    def mixed(self, omega: float) -> Prompts:
        """omega P' + (1 - omega) P; exactly P at 0 and exactly P' at 1."""
        if omega == 0:
            return self.tuned.emit()
        if omega == 1:
            return self.parallel_prompts()
        if self.mix_leaves:
            tuned = self._tuned_leaves()
            return emit_with(self.parallel, {n: mix(x, tuned[n], omega) for n, x in self.parallel_leaves().items()})
        return self.parallel_prompts().map(lambda x, p: mix(x, p, omega), self.tuned.emit())

    def base_mixture(self) -> Prompts:
        """The prompts of base classes, within the mixing scope."""
        mixed = self.mixed(self.omega_b)
        if self.scope == "all":
            return mixed
        own = self.parallel_prompts()
        return Prompts(mixed.text, own.text_deep, own.vision, own.vision_deep)

    def train_prompts(self) -> Prompts:
        """What the training forward uses."""
        return self.base_mixture() if self.train_forward == "mixed" else self.parallel_prompts()

    def new_prompts(self) -> Prompts:
        """The prompts of new classes."""
        mixed = self.mixed(self.omega_n)
        if self.new_text == "mixed":
            return mixed
        tuned = self.tuned.emit()
        return Prompts(tuned.text, tuned.text_deep, mixed.vision, mixed.vision_deep)

    def emit(self) -> Prompts:
        """What evaluation uses: decoupled by task; in ``union``, which uses both, the prompts of new classes."""
        return self.base_mixture() if self.task == "base" else self.new_prompts()

    # -- encoding: everything but the prompts (PromptKD's projector) follows P' on base classes and P on new ones ----

    @property
    def _net(self) -> PromptedCLIP:
        return self.parallel if self.task == "base" else self.tuned

    def encode_classes(self, prompts, index=None):
        return self._net.encode_classes(prompts, index)

    def encode_images(self, images, prompts):
        return self._net.encode_images(images, prompts)

    @property
    def scale(self):
        return self._net.scale

    # -- base and new classes together ------------------------------------------------------------------------------

    def set_base_classes(self, names: Sequence[str]) -> None:
        """Say which classes stage 2 was trained on; the others are new. Needed by the task ``union`` alone."""
        known = {name.replace("_", " ") for name in names}
        self.is_base = torch.tensor([name in known for name in self.classnames]) if known else None
        self._union_key = None

    def union_text(self) -> tuple[Tensor, Tensor]:
        """Class features for evaluation, kept as :meth:`class_features` is: of the base classes under their prompts
        ``[C_b, E]``, of all classes under those of new ones ``[C, E]``.

        Raises:
            ValueError: nobody has said which classes are base classes.
        """
        if self.is_base is None:
            raise ValueError(
                "TRAINER.DPC.TASK union needs to know the base classes, which the run's results.json (or that of "
                "TRAINER.DPC.CKPT_DIR) lists: there is none"
            )
        key = self.cache_key()
        if self._union_key != key:
            with torch.no_grad():
                index = self.is_base.nonzero()[:, 0].to(self.clip.logit_scale.device)
                base = self.parallel.encode_classes(self.base_mixture(), index) if len(index) else None
                every = self.tuned.encode_classes(self.new_prompts())
            self._union_text = every[:0] if base is None else base, every
            self._union_key = key
        return self._union_text

    def class_features(self):
        """In ``union``: every class under its own prompts."""
        if self.task != "union":
            return super().class_features()
        base, every = self.union_text()
        joint = every.clone()
        joint[self.is_base.to(every.device)] = base
        return joint

    def union_scores(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the base classes under their prompts ``[B, C_b]``, and of all classes under those of new ones ``[B, C]``.

        Where both have the same image prompts, none, images are encoded once.
        """
        base_text, every_text = self.union_text()
        base_prompts, new_prompts = self.base_mixture(), self.new_prompts()
        features = self.tuned.encode_images(images, new_prompts)
        own = self.parallel.encode_images(images, base_prompts) if base_prompts.has_vision else features
        return self.parallel.logits(own, base_text), self.tuned.logits(features, every_text)

    def forward(self, images):
        if self.task != "union":
            return super().forward(images)
        return join(*self.union_scores(images), self.is_base.to(images.device), self.union)
