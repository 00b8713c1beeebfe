"""What the composed-retrieval methods share as Dassl trainers: triplets, cached image features, evaluation,
schedule."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dassl_prompts.composed import circo_submission, cirr_submission
from dassl_prompts.composed.loading import CachedTriplets, TripletImages
from dassl_prompts.composed.metrics import best, evaluate, summarise
from dassl_prompts.composed.query import QueryFunction, mean_over_wordings
from dassl_prompts.composed.schedule import StepCosine
from dassl_prompts.composed.target_pad import TargetPadTransform
from dassl_prompts.composed.triplets import RetrievalTask, Triplet, check_galleries
from dassl_prompts.engine import DATASET_REGISTRY, PromptTrainer, build_dataset, check_availability
from dassl_prompts.engine.digest import data_digests
from dassl_prompts.engine.loading import count_corrupt
from dassl_prompts.features.feature_cache import FeatureCache, ImageList, cached_features, image_batches
from dassl_prompts.models.tokens import MEAN, STD, TokenEncoder
from dassl_prompts.ranking.sheet import Row, contact_sheet

#: protocols whose test split has a server
SUBMISSIONS = {"cirr": cirr_submission, "circo": circo_submission}


class ComposedTrainer(PromptTrainer):
    """Base of PVLF, TransAgg and the baselines. A method sets ``self.encoder`` and ``self.query`` in
    ``build_model``."""

    #: the method's node under cfg.TRAINER; "" where nothing is trained
    config_node = ""
    encoder: TokenEncoder
    #: (captions, token maps) -> query features, in evaluation mode
    query: QueryFunction
    sched: StepCosine
    #: half precision of the towers and the head; None computes in fp32
    autocast_dtype: torch.dtype | None = None

    def frozen_digests(self) -> dict[str, str]:
        return {"backbone": self.encoder.digest, "activation": self.encoder.activation}

    # -- data ------------------------------------------------------------------------------------------------

    def build_data_loader(self) -> None:
        """Only the dataset: batches need the backbone's cached features, see :meth:`before_train`."""
        dataset = build_dataset(self.cfg)
        self.use_data_manager(
            SimpleNamespace(
                dataset=dataset,
                train_loader_x=None,
                train_loader_u=None,
                val_loader=None,
                test_loader=None,
                num_classes=0,
                num_source_domains=0,
                lab2cname={},
            )
        )

    def use_net(self) -> None:
        """Build the method's net, and start from the tensors of ``MODEL.INIT_WEIGHTS`` where they are given."""
        self.model = self.build_net(self.cfg, self.device)
        self.query = self.model.query
        self.use_encoder(self.model.encoder)
        if self.cfg.MODEL.INIT_WEIGHTS:
            self.load_init_weights(self.model, self.cfg.MODEL.INIT_WEIGHTS)

    def use_encoder(self, encoder) -> None:
        """Take the towers that references, captions and galleries are encoded with.

        Raises:
            ValueError: pictures of another size than theirs.
        """
        self.encoder = encoder
        self.tell_activation()
        self.backbone_digest = encoder.digest
        self.check_size()

    def tell_activation(self) -> None:
        if self.encoder.activation:
            print(f"Activation: {self.encoder.activation} ({self.encoder.activation_source})")

    def check_size(self) -> None:
        """Raise ValueError unless INPUT.SIZE is what the backbone takes."""
        size, wanted = tuple(self.cfg.INPUT.SIZE), self.encoder.image_size
        if size != (wanted, wanted):
            raise ValueError(
                f"INPUT.SIZE is {size} but the backbone {self.cfg.MODEL.BACKBONE.NAME} takes {wanted} px: "
                f'give INPUT.SIZE "({wanted}, {wanted})" or a configuration file made for this backbone'
            )

    def eval_datasets(self) -> dict:
        """Name -> dataset of everything to evaluate on."""
        names = list(self.cfg.CIR.EVAL) or [self.cfg.DATASET.NAME]
        for name in names:
            check_availability(name, DATASET_REGISTRY.registered_names())
        own = self.cfg.DATASET.NAME
        return {name: self.dm.dataset if name == own else DATASET_REGISTRY.get(name)(self.cfg) for name in names}

    def digests(self) -> dict[str, str]:
        evaluated = {}
        for dataset in self.eval_datasets().values():
            evaluated |= data_digests(dataset, self.cfg)
        return {**evaluated, **super().digests()}

    @property
    def transform(self) -> TargetPadTransform:
        return TargetPadTransform(self.encoder.image_size, MEAN, STD, self.cfg.CIR.TARGETPAD_RATIO)

    @property
    def caches_images(self) -> bool:
        """Whether the image tower is constant and its features may be kept."""
        return self.cfg.CIR.CACHE and self.encoder.tuning != "both"

    def cache(self, name: str, paths: Sequence[str], tokens: bool, skip_unreadable: bool = False) -> FeatureCache:
        """Cached token maps [N, n_image, d] or global features [N, d] of images."""
        encoder, cfg = self.encoder, self.cfg
        encode, shape = (
            (encoder.image_tokens, (encoder.n_image, encoder.width))
            if tokens
            else (encoder.image_features, (encoder.width,))
        )
        return cached_features(
            cfg.CIR.CACHE_DIR or Path(self.output_dir) / "features",
            f"{name}-{'tokens' if tokens else 'global'}",
            paths,
            self.in_eval_mode(encode),
            self.transform,
            weights=encoder.image_fingerprint(),
            shape=shape,
            precision=str(self.autocast_dtype or torch.float32),
            dtype=cfg.CIR.CACHE_DTYPE if tokens else "fp32",
            skip_unreadable=skip_unreadable,
            orientation=cfg.INPUT.ORIENTATION,
            batch_size=cfg.DATALOADER.TEST.BATCH_SIZE,
            workers=cfg.DATALOADER.NUM_WORKERS,
            device=self.device,
        )

    def in_eval_mode(self, encode):
        """``encode`` without gradients, dropout and autocast side effects."""

        def run(images: Tensor) -> Tensor:
            self.set_model_mode("eval")
            with torch.no_grad(), self.autocast():
                return encode(images)

        return run

    def autocast(self):
        """The autocast context of the run's precision."""
        dtype = self.autocast_dtype
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    # -- training --------------------------------------------------------------------------------------------

    def before_train(self) -> None:
        self.check_training_data()
        if not self.cfg.TEST.NO_TEST:
            self.check_eval_images()
        loader, what = self.training_loader()
        self.train_loader_x = self.dm.train_loader_x = loader
        self.sched.steps = len(loader)
        print(f"{what}, {len(loader)} steps per epoch")
        super().before_train()

    def check_training_data(self) -> None:
        """Raise ValueError where there is nothing to train on, before anything is encoded."""
        if not self.dm.dataset.train_x:
            raise ValueError(f"{self.cfg.DATASET.NAME} has no training triplets")

    def training_loader(self) -> tuple:
        """Batches as ``forward_backward`` takes them, and what they are of in words."""
        triplets = self.dm.dataset.train_x
        if self.caches_images:
            return self.cached_loader(triplets), f"{len(triplets):,} triplets, image features cached"
        return self.image_loader(triplets), f"{len(triplets):,} triplets, image features live"

    def check_eval_images(self) -> None:
        """Find out before training, not after it, that the evaluation lacks something."""
        for dataset in self.eval_datasets().values():
            tasks = dataset.tasks(self.cfg.CIR.SPLIT)
            check_scored(tasks)
            if self.cfg.TEST.FINAL_MODEL == "best_val" and not has_targets(tasks):
                raise ValueError(
                    f"TEST.FINAL_MODEL best_val cannot choose an epoch on {tasks[0].name}, whose targets are not "
                    "public: train with CIR.SPLIT val, then evaluate the test split"
                )
            check_galleries(tasks, "Set TEST.NO_TEST True to train without evaluation.")

    def cached_loader(self, triplets: Sequence[Triplet]) -> CachedTriplets:
        """Encode every image of the training set once."""
        limit = self.cfg.DATALOADER.MAX_CORRUPT
        references = list(dict.fromkeys(t.reference for t in triplets))
        targets = list(dict.fromkeys(t.target for t in triplets))
        tokens = self.cache("train", references, tokens=True, skip_unreadable=limit > 0)
        globals_ = self.cache("train-targets", targets, tokens=False, skip_unreadable=limit > 0)
        broken = {references[i] for i in tokens.unreadable} | {targets[i] for i in globals_.unreadable}
        count_corrupt({"corrupt": sorted(broken)}, self.corrupt_images, limit)
        reference_row, target_row = ({path: i for i, path in enumerate(paths)} for paths in (references, targets))
        rows = [
            (reference_row[t.reference], target_row[t.target], t.caption)
            for t in triplets
            if t.reference not in broken and t.target not in broken
        ]
        if len(rows) < len(triplets):
            print(f"Left out {len(triplets) - len(rows)} triplets with unreadable images")
        return CachedTriplets(tokens.array, globals_.array, rows, self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE)

    def image_loader(self, triplets: Sequence[Triplet]) -> DataLoader:
        target_row: dict[str, int] = {}
        ids = [target_row.setdefault(t.target, len(target_row)) for t in triplets]
        replace = self.cfg.DATALOADER.MAX_CORRUPT > 0
        data = TripletImages(triplets, ids, self.transform, replace, self.cfg.INPUT.ORIENTATION)
        size = min(self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE, len(data))
        workers = self.cfg.DATALOADER.NUM_WORKERS
        return DataLoader(
            data,
            size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
        )

    def after_train(self) -> None:
        """Test the last step's weights and, where validation chose a best epoch, that one too; both are
        noted."""
        print("Finish training")
        if not self.cfg.TEST.NO_TEST:
            self.test(label="last")
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                print(
                    "Deploy the model with the best val performance\nWarning: the best epoch was chosen on the split that is "
                    "reported, as in TransAgg's code; the last epoch's numbers are the honest ones"
                )
                self.load_model(self.output_dir)
                self.test(label="best")
        self.close_writer()

    # -- evaluation ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def test(self, split: str | None = None, label: str = "", more: bool = False) -> float:
        """Evaluate on ``CIR.EVAL``, split ``CIR.SPLIT``; the test splits of CIRR and CIRCO give submission files
        instead of metrics.

        Args:
            split: ignored, the protocols fix it (kept for Dassl's signature).
            label: prefix of the entry in results.json, e.g. "last". more: another call follows, so that the run is not finished.

        Returns:
            the mean criterion of the first dataset (TransAgg's), nan for a submission.
        """
        with self.folder.lock():
            self.folder.check_owner()
            self.set_model_mode("eval")
            datasets, values = self.eval_datasets(), []
            for name, dataset in datasets.items():
                self.more_evaluations = more or len(values) < len(datasets) - 1
                values.append(self.test_dataset(name, dataset, label))
        return values[0]

    def test_dataset(self, name: str, dataset, label: str) -> float:
        tasks = dataset.tasks(self.cfg.CIR.SPLIT)
        check_scored(tasks)
        check_galleries(tasks)
        # part of the entry's name, so that no table can put it beside, or average it with, whole evaluations
        name += "(incomplete,not-comparable)" if any(task.left_out for task in tasks) else ""
        entry = " ".join(filter(None, (label, name, self.cfg.CIR.SPLIT)))
        print(f"Evaluate on {name} {self.cfg.CIR.SPLIT}: {sum(len(t.queries) for t in tasks):,} queries")
        features = [self.task_features(task) for task in tasks]
        if not has_targets(tasks):
            self.write_submission(tasks[0], *features[0], label)
            return math.nan
        results = summarise(tasks, [evaluate(task, *pair) for task, pair in zip(tasks, features)])
        print("=> " + ", ".join(f"{key} {value:.2f}" for key, value in results.items()))
        if self.cfg.CIR.SHEET and (label or not self._training):
            for task, pair in zip(tasks, features):
                self.write_sheet(task, *pair, label)
        return self.record(entry, results)

    def write_sheet(self, task: RetrievalTask, queries: Tensor, gallery: Tensor, label: str) -> None:
        """A contact sheet of ``CIR.SHEET`` queries, evenly spread over the task: their first five images and
        the wanted one."""
        chosen = spread(self.cfg.CIR.SHEET, len(task.queries))
        found = best(task, queries, gallery, 5)
        rows = [
            Row(
                task.gallery[query.reference],
                query.texts[0],
                [task.gallery[name] for name in (*found[i], query.target)],
                [*(f"{rank}. {name}" for rank, name in enumerate(found[i], 1)), "wanted"],
                right=[task.gallery[name] for name in query.answers],
            )
            for i in chosen
            for query in [task.queries[i]]
        ]
        path = (
            Path(self.output_dir)
            / f"sheet-{label.replace(' ', '-').replace(',', '')}{'-' if label else ''}{file_name(task)}.png"
        )
        contact_sheet(rows, path, self.cfg.INPUT.ORIENTATION)
        print(f"Contact sheet: {path}")

    def write_submission(self, task: RetrievalTask, queries: Tensor, gallery: Tensor, label: str) -> None:
        """The files of one method and query; results.json lists those of all queries of the run."""
        name = f"{self.cfg.TRAINER.NAME} {label}".strip()
        kind = SUBMISSIONS[task.protocol]
        paths = [str(path) for path in kind.write(task, queries, gallery, self.output_dir, name)]
        print(f"Wrote and checked {' and '.join(paths)}: for {kind.SERVER}")
        earlier = [path for path in self.folder.results().get("submission", []) if path not in paths]
        done = {"finished": not self.more_evaluations, "submission": [*earlier, *paths]}
        self.write_results({**self.description(), **done})

    def task_features(self, task: RetrievalTask) -> tuple[Tensor, Tensor]:
        """Query features [Q, d] and gallery features [G, d] of a task, normalised, on the CPU."""
        blank = sum(not any(text.strip() for text in query.texts) for query in task.queries)
        if blank:
            print(f"{task.name}: {blank} blank captions, asked with an empty text")
        return self.query_features(task), self.gallery_features(task)

    def gallery_features(self, task: RetrievalTask) -> Tensor:
        paths = list(task.gallery.values())
        if self.cfg.CIR.CACHE and not (self._training and self.encoder.tuning == "both"):
            features = torch.from_numpy(np.array(self.cache(file_name(task), paths, tokens=False).array))
        else:  # a tower that trains has other features after every epoch
            encode = self.in_eval_mode(self.encoder.image_features)
            features = torch.cat([encode(batch).float().cpu() for batch in self.batches(paths)])
        return torch.nn.functional.normalize(features, dim=-1)

    def batches(self, paths: Sequence[str]) -> Iterator[Tensor]:
        images = ImageList(paths, self.transform, orientation=self.cfg.INPUT.ORIENTATION)
        for batch in image_batches(images, self.cfg.DATALOADER.TEST.BATCH_SIZE, self.cfg.DATALOADER.NUM_WORKERS):
            yield torch.stack(batch).to(self.device)

    def query_features(self, task: RetrievalTask) -> Tensor:
        """Queries are answered reference by reference, so that every reference's token map is needed once."""
        references = list(dict.fromkeys(query.reference for query in task.queries))
        asked: dict[str, list[int]] = {name: [] for name in references}
        for index, query in enumerate(task.queries):
            asked[query.reference].append(index)
        features: list[Tensor] = [torch.empty(0)] * len(task.queries)
        start = 0
        for maps in self.token_maps(file_name(task), [task.gallery[name] for name in references]):
            names = references[start : start + len(maps)]
            start += len(maps)
            indices = [i for name in names for i in asked[name]]
            rows = torch.tensor([row for row, name in enumerate(names) for _ in asked[name]], device=self.device)
            with torch.no_grad(), self.autocast():
                found = mean_over_wordings(self.query, [task.queries[i].texts for i in indices], maps[rows])
            for index, feature in zip(indices, found.float().cpu()):
                features[index] = feature
        return torch.stack(features)

    def token_maps(self, name: str, paths: Sequence[str]) -> Iterator[Tensor]:
        """Token maps [B, n_image, d] of images, batch by batch, from the cache where the image tower is
        constant."""
        if not self.caches_images:
            encode = self.in_eval_mode(self.encoder.image_tokens)
            yield from (encode(batch).float() for batch in self.batches(paths))
            return
        array, size = self.cache(name, paths, tokens=True).array, self.cfg.DATALOADER.TEST.BATCH_SIZE
        for start in range(0, len(paths), size):
            yield torch.from_numpy(np.array(array[start : start + size])).to(self.device).float()


def has_targets(tasks: Sequence[RetrievalTask]) -> bool:
    return all(query.target is not None for task in tasks for query in task.queries)


def check_scored(tasks: Sequence[RetrievalTask]) -> None:
    """Raise ValueError when there are neither public targets nor a server that knows them."""
    if not has_targets(tasks) and tasks[0].protocol not in SUBMISSIONS:
        raise ValueError(f"{tasks[0].name} has no public targets and no test server: evaluate CIR.SPLIT val")


def spread(count: int, total: int) -> list[int]:
    """``count`` different numbers below ``total``, evenly spread; all of them where there are no more.

    >>> spread(3, 10), spread(8, 3)
    ([0, 3, 6], [0, 1, 2])
    """
    count = min(count, total)
    return [i * total // count for i in range(count)]


def file_name(task: RetrievalTask) -> str:
    return task.name.replace(" ", "-")
