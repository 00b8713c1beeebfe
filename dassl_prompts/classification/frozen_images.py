"""What classification trainers keep of pictures where the image tower is frozen and has no prompts."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dassl_prompts.engine.config import flatten
from dassl_prompts.engine.seam import VERSION
from dassl_prompts.features.frozen import Encoder, FrozenLoader, FrozenViews, says_all, why_not
from dassl_prompts.features.store import Store, folder_of
from dassl_prompts.features.view_cache import model_digest


class FrozenImages:
    """Part of :class:`~dassl_prompts.classification.trainer.ClassificationTrainer`."""

    #: Whether the class asks of pictures nothing but :meth:`frozen_rows`; its batches then hold these under ``img``, ``[B, R]``.
    #: Every class says so itself, it is not inherited: a subclass may look at pixels.
    frozen_image_side = False

    def frozen_rows(self, images: Tensor) -> Tensor:
        """What the method needs of images ``[B, 3, S, S]`` as rows ``[B, R]``, each of its image alone."""
        return self.model.clip.encode_image(images)

    def rows_are(self) -> str:
        """What else the rows depend on."""
        return "image features"

    def frozen(self, loader: Any) -> Any:
        """``loader`` with rows instead of pixels, computed once for every view; itself where the method or the data need pixels."""
        if not self.has_frozen_images or not isinstance(loader, DataLoader) or loader.batch_sampler is None:
            return loader
        reason = why_not(loader.dataset)
        if reason:
            self._tell(f"Features of the frozen image tower are computed anew for every batch: {reason}")
            return loader
        return FrozenLoader(loader, self.frozen_views(loader.dataset))

    @cached_property
    def has_frozen_images(self) -> bool:
        """Whether the run's image tower has no prompts and its method says that features are all it needs."""
        return bool(vars(type(self)).get("frozen_image_side")) and not self.model.prompts_images

    def frozen_views(self, wrapper) -> FrozenViews:
        """The views under a dataset wrapper's transform; wrappers with equal transforms share them."""
        known = says_all(wrapper.transform)
        key = repr(wrapper.transform) if known else id(wrapper.transform)
        if key not in self._views:
            workers = self.cfg.DATALOADER.NUM_WORKERS
            self._views[key] = FrozenViews(self._encoder, workers, self._store(wrapper, known))
        return self._views[key]

    @cached_property
    def _views(self) -> dict[Any, FrozenViews]:
        return {}

    @cached_property
    def _told(self) -> set[str]:
        return set()

    @cached_property
    def _encoder(self) -> Encoder:
        def encode(images: Tensor) -> Tensor:
            with self.autocast():
                return self.frozen_rows(images)

        return Encoder(encode, self.device, self.cfg.INPUT.SIZE[0])

    def _store(self, wrapper, transform_known: bool) -> Store | None:
        root = folder_of(self.cfg.FEATURES.DIR)
        if root is None:
            return None
        if not transform_known:
            self._tell(
                "Features of the frozen image tower are not kept: the repr of a transform does not tell what it does"
            )
            return None
        limit, row = self.cfg.FEATURES.MAX_GB * 1e9, self._encoder.row_bytes
        need = row * len(wrapper) * self.max_epoch if wrapper.is_train else row * len(wrapper)
        if need > limit / 2:
            self._tell(
                f"Features of {'training' if wrapper.is_train else 'test'} images are not kept: they would take "
                f"{need / 1e9:.1f} GB, more than half of FEATURES.MAX_GB {self.cfg.FEATURES.MAX_GB:g}"
            )
            return None
        self._tell(f"Features of the frozen image tower are kept in {root} (FEATURES.DIR)")
        return Store(root, self._parts(wrapper), self._encoder.width, limit)

    def _parts(self, wrapper) -> dict[str, Any]:
        """Everything that rows depend on besides picture and view."""
        import PIL
        import torchvision

        clip, cuda = self.model.clip, self.device.type == "cuda"
        machine = torch.cuda.get_device_name(self.device) if cuda else torch.backends.cpu.get_cpu_capability()
        return {
            "weights": clip.digest or model_digest(clip.vision),
            "activation": clip.activation,
            "precision": f"{self.precision} {self.autocast_dtype or ''}".strip(),
            "rows": self.rows_are(),
            "transform": repr(wrapper.transform),
            # a repr may round
            "input": sorted(flatten(self.cfg.INPUT).items()) if wrapper.is_train else wrapper.orientation,
            "versions": (VERSION, torch.__version__, torchvision.__version__, PIL.__version__),
            "machine": f"{self.device.type} {machine}",
        }

    def _tell(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            print(line)

    # -- hooks ----------------------------------------------------------------------------------------------------

    def epoch_loader(self):
        return self.frozen(super().epoch_loader())

    def choose_split(self, split):
        split, loader = super().choose_split(split)
        return split, self.frozen(loader)

    def after_epoch(self):
        for views in self._views.values():
            views.flush()
        super().after_epoch()
