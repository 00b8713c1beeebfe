"""LinearProbe: a linear classifier blended with CLIP's text features, in the manner of LP++ (Huang et al., CVPR 2024,
arXiv 2404.02285).

Frozen features, full-batch gradient descent, step sizes and initial values from the data: nothing is searched.
"""

from __future__ import annotations

import torch
import torch.nn as nn
from torch import Tensor

from dassl_prompts.classification.class_bound import ClassBoundTrainer, rows_among
from dassl_prompts.classification.prompted import Prompts
from dassl_prompts.classification.templates import template_for
from dassl_prompts.engine import add_defaults, build_lr_scheduler, compute_accuracy, register_trainer
from dassl_prompts.engine.checkpoint import strip_module
from dassl_prompts.engine.loading import whole_pass_loader
from dassl_prompts.engine.randomness import view_seed
from dassl_prompts.trainers.zsclip import FrozenTextModel


def extend_cfg(cfg):
    add_defaults(
        cfg,
        "TRAINER.LP",
        {
            "ALPHA_SCALE": 250.0,  # initial text weight: this times the mean cosine of images and their own class
            "ALPHA_EVERY": 10,  # steps of W for one step of alpha
            "VIEWS": 1,  # augmented views of every training image, all in one batch
            "TEMPLATE": "",  # "" = the dataset's own; e.g. "a photo of a {}."
            "PREC": "amp",  # fp16, fp32, amp of the frozen towers; the classifier is fp32 in all of them
        },
    )


class Probe(nn.Module):
    """``z_c = v . w_c + b_c + alpha_c v . t_c``: a classifier whose weights are functions of the text features."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.classifier = nn.Linear(width, classes)
        self.alpha = nn.Parameter(torch.zeros(classes))

    def forward(self, features: Tensor, text: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            features, text = features.float(), text.float()
            return self.classifier(features) + self.alpha * (features @ text.t())


class LinearProbeModel(FrozenTextModel):
    """Normalised image features under a :class:`Probe`."""

    checkpoint_name = "linear_probe"

    def __init__(self, clip, classnames, template: str):
        super().__init__(clip, classnames, [template])
        self.probe = Probe(len(classnames), clip.embed_dim)
        self.trained = []

    @property
    def checkpoint_module(self):
        return self.probe

    def logits(self, images, text):
        return self.probe(images, text)

    @torch.no_grad()
    def start(self, features: Tensor, labels: Tensor, scale: float) -> None:
        """W at the classes' mean features, alpha at ``scale`` times the mean cosine of images with their own class."""
        for row in range(len(self.classnames)):
            self.probe.classifier.weight[row] = features[labels == row].mean(0)
        self.probe.classifier.bias.zero_()
        own = (features * self.text[labels]).sum(1)
        per_class = torch.stack([own[labels == row].mean() for row in range(len(self.classnames))])
        self.probe.alpha.fill_(scale * per_class.mean())


def step_sizes(features: Tensor, text: Tensor) -> tuple[float, float]:
    """Of W, ``4 N / lambda_max(V^T V)``, and of alpha, ``N / (4 max_c sum_i (v_i . t_c)^2)``: LP++'s Lipschitz estimates."""
    n, v, t = len(features), features.double(), text.double()
    largest = torch.linalg.eigvalsh(v.t() @ v)[-1]
    return float(4 * n / largest), float(n / (4 * (v @ t.t()).square().sum(0).max()))


@register_trainer
class LinearProbe(ClassBoundTrainer):
    """LinearProbe: a linear classifier blended with CLIP's text features, in the manner of LP++.

    Cross-entropy over z; one epoch is one step on all training images.
    """

    frozen_image_side = True
    config_node = "LP"

    @classmethod
    def build_net(cls, cfg, classnames, clip):
        return LinearProbeModel(clip, classnames, template_for(cfg, cfg.TRAINER.LP.TEMPLATE, "TRAINER.LP.TEMPLATE"))

    def register_net(self):
        module = self.model.checkpoint_module
        self.optim = self.build_optimizer(list(module.classifier.parameters()))
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model(self.model.checkpoint_name, module, self.optim, self.sched)

    @classmethod
    def load_state(cls, model, state, source):
        """A class that was not trained on gets no weights and the mean text weight of those that were: zero-shot CLIP."""
        state = strip_module(state)
        if model.trained and "alpha" in state:
            rows = rows_among(model.classnames, model.trained)
            take = lambda x, other: torch.where((rows >= 0).view(-1, *[1] * (x.ndim - 1)), x[rows.clamp_min(0)], other)
            other = {"alpha": state["alpha"].mean()}
            state = {name: take(x, other.get(name, torch.zeros(()))) for name, x in state.items()}
        super().load_state(model, state, source)

    def before_train(self):
        super().before_train()
        node, model = self.cfg.TRAINER.LP, self.model
        loader, features, labels = whole_pass_loader(self.cfg, self.dm), [], []
        for view in range(node.VIEWS):
            loader.dataset.epoch_seed = view_seed(self.cfg.SEED, view)  # the same features when a run is resumed
            for batch in self.frozen(loader):
                images, label = self.parse_batch_train(batch)
                with torch.no_grad(), self.autocast():
                    features.append(model.encode_images(images, Prompts()))
                labels.append(label)
        features, labels = torch.cat(features), torch.cat(labels)
        step, self.alpha_step = step_sizes(features, model.text)
        if self.start_epoch == 0:
            model.start(features, labels, node.ALPHA_SCALE)
            self.sched.base_lrs = [self.cfg.OPTIM.LR * step]
            self.optim.param_groups[0]["lr"] = self.sched.get_lr()[0]
        print(f"{len(labels)} features; steps: W {step:.3g}, alpha {self.alpha_step:.3g}")
        self.train_loader_x = [{"features": features, "label": labels}]

    def forward_backward(self, batch):
        logits = self.model.logits(batch["features"], self.model.text)
        loss = nn.functional.cross_entropy(logits, batch["label"])
        self.model.probe.alpha.grad = None
        self.step(loss)
        if (self.epoch + 1) % self.cfg.TRAINER.LP.ALPHA_EVERY == 0:
            with torch.no_grad():
                self.model.probe.alpha -= self.alpha_step * self.model.probe.alpha.grad
        self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(logits, batch["label"])[0].item()}
