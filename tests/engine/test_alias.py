"""A lab's own files, written for Dassl, on the built-in engine."""

import textwrap

from tests.engine.test_seam import python
from tests.engine.toy import make_images
from tests.engine.vendored import make_dassl

#: every import that the CoOp family makes (spec 1.1)
LAB = """
    from dassl_prompts.engine import install_alias
    install_alias()
    install_alias()
    from dassl.engine import TRAINER_REGISTRY, TrainerX, TrainerXU, build_trainer
    from dassl.engine.trainer import TrainerX as X, MetricMeter, AverageMeter, SimpleTrainer
    from dassl.data.datasets import DATASET_REGISTRY, Datum, DatasetBase, build_dataset
    from dassl.data.datasets.base_dataset import Datum as D
    from dassl.data import DatasetWrapper, DataManager
    from dassl.data.data_manager import DatasetWrapper as W, build_data_loader
    from dassl.data.transforms import build_transform
    from dassl.data.samplers import build_sampler
    from dassl.optim import build_optimizer, build_lr_scheduler
    from dassl.optim.radam import RAdam
    from dassl.utils import (load_checkpoint, load_pretrained_weights, mkdir_if_missing, listdir_nohidden, read_json,
        write_json, check_isfile, setup_logger, set_random_seed, collect_env_info, read_image, Registry,
        check_availability, count_num_param, tolist_if_not, open_specified_layers, save_checkpoint)
    from dassl.metrics import compute_accuracy
    from dassl.config import get_cfg_default, clean_cfg
    from dassl.evaluation import build_evaluator, EVALUATOR_REGISTRY
    import dassl.engine, dassl.data.datasets
    assert dassl.__builtin_engine__ and X is TrainerX and D is Datum and W is DatasetWrapper
    import dassl_prompts.engine as ours
    assert ours.TRAINER_REGISTRY is TRAINER_REGISTRY and ours.TrainerX is TrainerX and ours.ENGINE_NAME == "builtin"
"""

TRAINER = """
    import os, pickle, sys, torch

    @DATASET_REGISTRY.register()
    class LabData(DatasetBase):
        def __init__(self, cfg):
            items = [Datum(impath=os.path.join(cfg.DATASET.ROOT, name, file), label=i, classname=name)
                     for i, name in enumerate(sorted(os.listdir(cfg.DATASET.ROOT)))
                     for file in sorted(os.listdir(os.path.join(cfg.DATASET.ROOT, name)))]
            super().__init__(train_x=items, val=items, test=items)

    @TRAINER_REGISTRY.register()
    class LabTrainer(TrainerX):
        def build_model(self):
            self.model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 3))
            self.optim = build_optimizer(self.model, self.cfg.OPTIM)
            self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
            self.register_model("model", self.model, self.optim, self.sched)

        def forward_backward(self, batch):
            image, label, _ = self.parse_batch_train(batch)
            output = self.model(image)
            loss = torch.nn.functional.cross_entropy(output, label)
            self.model_backward_and_update(loss)
            if self.batch_idx + 1 == self.num_batches:
                self.update_lr()
            return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}

    cfg = get_cfg_default()
    cfg.DATASET.ROOT, cfg.OUTPUT_DIR = ROOT, OUT
    cfg.DATASET.NAME, cfg.TRAINER.NAME = "LabData", "LabTrainer"
    cfg.INPUT.SIZE, cfg.DATALOADER.NUM_WORKERS, cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.WARMUP_EPOCH = (8, 8), 0, 2, 1
    cfg.freeze()
    setup_logger(cfg.OUTPUT_DIR)
    build_trainer(cfg).train()
    assert os.path.exists(os.path.join(OUT, "model", "model.pth.tar-2"))
    assert "Finish training" in open(os.path.join(OUT, "log.txt")).read()
    assert b"dassl_prompts.engine" in pickle.dumps(Datum()) and pickle.loads(pickle.dumps(Datum("x"))).impath == "x"
"""


def test_a_labs_trainer_runs_on_the_alias(tmp_path):
    make_images(tmp_path / "images")
    paths = f"ROOT, OUT = {str(tmp_path / 'images')!r}, {str(tmp_path / 'out')!r}\n"
    out = python(paths + textwrap.dedent(LAB) + textwrap.dedent(TRAINER), engine="builtin", installed=False)
    assert "* total: 18" in out


CHECKOUT = """
    from dassl_prompts.engine import install_alias
    install_alias()
    from dassl.data.datasets import DATASET_REGISTRY, DatasetBase
    from dassl.engine import TRAINER_REGISTRY, TrainerX
    from dassl.utils import setup_logger

    @DATASET_REGISTRY.register()
    class Caltech101(DatasetBase): pass

    @DATASET_REGISTRY.register()
    class OxfordPets(DatasetBase): pass

    @TRAINER_REGISTRY.register()
    class CoOp(TrainerX): pass

    assert DATASET_REGISTRY.get("Caltech101") is Caltech101 and TRAINER_REGISTRY.get("CoOp") is CoOp
    assert TRAINER_REGISTRY.get("DPC_CoOp").backbone.__module__ == "dassl_prompts.trainers.coop"
    try:
        DATASET_REGISTRY.register(Caltech101)
    except KeyError:  # only our classes make way
        setup_logger(OUT)
"""


def test_a_coop_checkout_has_names_of_ours(tmp_path):
    """Its files are imported after install_alias, when our classes have their names; one line of the log tells of it."""
    python(f"OUT = {str(tmp_path)!r}\n" + textwrap.dedent(CHECKOUT), engine="builtin", installed=False)
    engine, names = (tmp_path / "log.txt").read_text().splitlines()
    assert engine.startswith("engine: builtin")
    assert names.startswith("trainer CoOp stays the one of module __main__, not the one of ")
    assert names.endswith("coop.py; likewise dataset Caltech101, OxfordPets")


def test_tensorboards_writer_comes_from_where_depts_trainers_take_it():
    code = """
    import sys, types
    from dassl_prompts.engine import install_alias
    install_alias()
    assert "tensorboard" not in sys.modules
    sys.modules["torch.utils.tensorboard"] = types.SimpleNamespace(SummaryWriter="the writer")
    from dassl.engine.trainer import SummaryWriter
    import dassl.engine.trainer
    print(SummaryWriter, hasattr(dassl.engine.trainer, "nonsense"))
    """
    assert python(code, engine="builtin", installed=False) == "the writer False\n"


def test_nothing_is_published_without_being_asked():
    assert python("import sys, dassl_prompts.engine; print('dassl' in sys.modules)", engine="builtin") == "False\n"


def test_the_alias_does_not_hide_the_real_dassl(tmp_path):
    make_dassl(tmp_path)
    code = "from dassl_prompts.engine import install_alias; install_alias()"
    assert "RuntimeError: the real Dassl is in use" in python(code, tmp_path, check=False)
    error = python(code, tmp_path, engine="builtin", check=False)
    assert f"RuntimeError: there is a package dassl at {tmp_path}/dassl/__init__.py" in error
