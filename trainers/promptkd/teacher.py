"""PromptKD's teacher: a prompt-tuned larger CLIP read from its checkpoint, and its image features kept in a file."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

import torch
from torch import Tensor

from dassl_prompts.classification.trainer import method_node
from dassl_prompts.engine import DatasetWrapper, build_transform, load_checkpoint
from dassl_prompts.engine.checkpoint import find_checkpoint, require_finite, strip_module, write_tensors
from dassl_prompts.engine.config import flatten
from dassl_prompts.engine.origin import Origin, Reader
from dassl_prompts.engine.reading import reading, require
from dassl_prompts.engine.resume import fingerprint
from dassl_prompts.trainers.ivlp import IVLP, TEXT_CTX, TEXT_DEEP, VISION_CTX, VISION_DEEP, IVLPModel

#: methods whose runs can teach
TEACHERS = ("PromptSRC", "IVLP")
#: where a teacher's checkpoint may lie below TEACHER_DIR: our runs and the official ones
TEACHER_FOLDERS = ("VLPromptLearner", "VLPromptLearner_large", "")


def find_teacher(path: str, epoch: int = -1) -> Path:
    """The teacher's checkpoint file: ``path`` itself, or the best or newest (or ``epoch``'s) one of the run
    in that folder.

    Raises:
        ValueError: nothing was configured.
        FileNotFoundError: no such checkpoint; says how to make one.
    """
    how = "train one with `bash scripts/promptkd/teacher.sh DATASET SEED` or get an official teacher"
    if not path:
        raise ValueError(f"TRAINER.PROMPTKD.TEACHER_DIR is empty: PromptKD needs the run folder of a teacher; {how}")
    root = Path(path).expanduser()
    if root.is_file():
        if epoch >= 0:
            raise ValueError(
                f"TRAINER.PROMPTKD.TEACHER_EPOCH {epoch} and TRAINER.PROMPTKD.TEACHER_DIR {path} contradict each other: the "
                "latter is one checkpoint already; give its run folder, or TEACHER_EPOCH -1"
            )
        return root
    folders = [root / name for name in TEACHER_FOLDERS if any((root / name).glob("model*.pth.tar*"))]
    try:
        return find_checkpoint(folders[0] if folders else root / TEACHER_FOLDERS[0], None if epoch < 0 else epoch)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"TRAINER.PROMPTKD.TEACHER_DIR {path}: {error}; {how}") from None


def teacher_sizes(state: dict[str, Tensor]) -> dict[str, int]:
    """Tokens and depths of a PromptSRC or IVLP checkpoint, read off its tensors."""
    sizes = {}
    for branch, first, deep in (("text", TEXT_CTX, TEXT_DEEP), ("vision", VISION_CTX, VISION_DEEP)):
        depth = 0
        if first in state:
            depth = 1
            while deep.format(depth) in state:
                depth += 1
        sizes[f"depth_{branch}"] = depth
        sizes[f"n_{branch}"] = state[first].shape[0] if depth else 1
    return sizes


def build_teacher(clip, classnames, path: Path, ctx_init: str = "a photo of a") -> IVLPModel:
    """Prompt-tuned ``clip`` from a PromptSRC or IVLP checkpoint, ours or official; sizes follow the file.

    Args:
        ctx_init: the teacher's initial words; those beyond its context tokens stand fixed in front of the
        class name.

    Raises:
        ValueError: the file is no such checkpoint, or made for another CLIP.
    """
    checkpoint = load_checkpoint(path)
    state = strip_module(checkpoint.get("state_dict", checkpoint))
    if TEXT_CTX not in state and VISION_CTX not in state:
        raise ValueError(f"{path} is no PromptSRC or IVLP checkpoint: it holds neither {TEXT_CTX} nor {VISION_CTX}")
    teacher = IVLPModel(clip, classnames, **teacher_sizes(state), ctx_init=ctx_init, node="PROMPTKD (teacher)")
    IVLP.load_state(teacher, state, f"the teacher's checkpoint {path} (TRAINER.PROMPTKD.TEACHER_NAME)")
    return teacher.to(clip.logit_scale.device).eval()


def check_teacher(cfg, path: Path, clip) -> None:
    """The teacher must be a prompt-tuned ``clip``, with the words that stand fixed before its class names.

    Raises:
        ValueError: its results.json says otherwise; names both sides.
    """
    node = method_node(cfg, "PROMPTKD")
    origin = Origin.of(path, f"TRAINER.PROMPTKD.TEACHER_DIR {node.TEACHER_DIR}")
    reader = Reader(
        trainer=TEACHERS[0],
        backbone=node.TEACHER_NAME,
        config=flatten(cfg.INPUT, "INPUT."),
        frozen={"backbone": clip.digest, "activation": clip.activation},
    )
    origin.check(reader, TEACHERS)
    method = origin.run.get("trainer", "").upper()
    words = origin.run.get("config", {}).get(f"TRAINER.{method}.CTX_INIT")
    if words is not None and plain_words(ast.literal_eval(words)) != plain_words(node.CTX_INIT):
        raise ValueError(
            f"{origin.where} was trained with TRAINER.{method}.CTX_INIT {words}, but TRAINER.PROMPTKD.CTX_INIT is "
            f"{node.CTX_INIT!r}: give the teacher's words"
        )


def plain_words(words: str) -> str:
    return " ".join(words.replace("_", " ").split())


def load_teacher(cfg, classnames, student) -> IVLPModel:
    """The teacher that ``cfg.TRAINER.PROMPTKD`` names, on the student's device.

    Raises:
        ValueError: it takes images of another size than the student.
    """
    from dassl_prompts.models import load_clip, resolve_precision

    node = method_node(cfg, "PROMPTKD")
    path = find_teacher(node.TEACHER_DIR, node.TEACHER_EPOCH)
    device = student.logit_scale.device
    precision = resolve_precision(node.PREC, device)
    activation, key = node.TEACHER_ACTIVATION, "TRAINER.PROMPTKD.TEACHER_ACTIVATION"
    clip = load_clip(node.TEACHER_NAME, precision=precision, device=device, activation=activation, key=key)
    print(f"Activation of the teacher: {clip.activation} ({clip.activation_source})")
    check_teacher(cfg, path, clip)
    if clip.image_size != student.image_size:
        raise ValueError(
            f"the teacher {node.TEACHER_NAME} takes images of {clip.image_size} px, the student {student.image_size} px: "
            "both see the same batch, choose TRAINER.PROMPTKD.TEACHER_NAME accordingly"
        )
    return build_teacher(clip, classnames, path, node.CTX_INIT)


class TeacherCache:
    """The teacher's normalised image features ``[N, E_T]`` of the training images in their test view, kept in
    a file.

    Raises:
        ValueError: the file belongs to another teacher or other images, or is a folder.
    """

    def __init__(self, trainer, path: str):
        self.path = Path(path).expanduser()
        node = method_node(trainer.cfg, "PROMPTKD")
        images = fingerprint(trainer.dm.dataset.train_x, trainer.cfg.DATASET.ROOT)
        orientation = trainer.cfg.INPUT.ORIENTATION
        wanted = {
            "teacher": file_digest(find_teacher(node.TEACHER_DIR, node.TEACHER_EPOCH)),
            "backbone": node.TEACHER_NAME,
            "images": images if orientation == "stored" else f"{images}, {orientation}",
        }
        if self.path.is_dir():
            raise ValueError(
                f"TRAINER.PROMPTKD.TEACHER_CACHE {self.path} is a folder: name the file that shall hold the features"
            )
        if self.path.exists():
            with reading(self.path, "a cache of a teacher's features", "delete it, it is computed again"):
                held = load_checkpoint(self.path)
                require(isinstance(held.get("features"), Tensor), "it holds no features")
                require(len(held["features"]) == len(trainer.dm.dataset.train_x), "it has another number of images")
            require_finite({"features": held["features"]}, f"TRAINER.PROMPTKD.TEACHER_CACHE {self.path}")
            different = [key for key, value in wanted.items() if held.get(key) != value]
            if different:
                raise ValueError(
                    f"TRAINER.PROMPTKD.TEACHER_CACHE {self.path} was made for another {' and other '.join(different)}: "
                    "name another file, or delete it"
                )
            self.features = held["features"]
            return
        print(f"Computing the teacher's image features for {self.path} (test view of every training image)")
        self.features = self.compute(trainer)
        write_tensors({**wanted, "features": self.features}, self.path)

    @staticmethod
    @torch.no_grad()
    def compute(trainer) -> Tensor:
        cfg = trainer.cfg
        data = DatasetWrapper(cfg, trainer.dm.dataset.train_x, transform=build_transform(cfg, is_train=False))
        own = torch.Generator()  # a run draws the same random numbers whether the cache is there or not
        loader = torch.utils.data.DataLoader(
            data, cfg.DATALOADER.TEST.BATCH_SIZE, num_workers=cfg.DATALOADER.NUM_WORKERS, generator=own
        )
        with trainer.autocast():
            parts = [trainer.model.teacher_image_features(batch["img"].to(trainer.device)).cpu() for batch in loader]
        return torch.cat(parts)


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
