"""Packaging of dassl-prompts.

The repository keeps CoOp's top level (trainers/, datasets/, configs/), but none of these names may reach the import
path: `datasets` is Hugging Face's package and `trainers` belongs to the CoOp checkout of our users. They are therefore
installed as sub-packages of dassl_prompts.
"""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = (ROOT / "dassl_prompts" / "VERSION").read_text().strip()

MAPPED = {
    "dassl_prompts.trainers": "trainers",
    "dassl_prompts.datasets": "datasets",
    "dassl_prompts.configs": "configs",
}
MAPPED_PACKAGES = [
    name for package, folder in MAPPED.items() for name in (package, *(f"{package}.{p}" for p in find_packages(folder)))
]
CONFIG_FILES = [
    str(p.relative_to(ROOT / "configs")) for p in (ROOT / "configs").rglob("*") if p.suffix in (".yaml", ".json")
]

setup(
    name="dassl-prompts",
    version=VERSION,
    description="Prompt learning for vision-language models on the Dassl/CoOp toolbox: DPC, AttriPrompt, DCAR, PVLF",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["dassl_prompts", "dassl_prompts.*"]) + MAPPED_PACKAGES,
    package_dir=MAPPED,
    package_data={
        "dassl_prompts": ["VERSION", "assets/**/*", "demo/*.css"],
        "dassl_prompts.configs": CONFIG_FILES,
    },
    # torch and torchvision are listed side by side so that pip resolves them as a matching pair. The lower bounds are those
    # of constraints/oldest.txt, on which the suite runs.
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "open_clip_torch>=2.29",
        "transformers>=4.40",
        "yacs>=0.1.8",
        "numpy>=1.26",
        "Pillow>=10.1",
        "safetensors>=0.4.3",
        "scikit-learn>=1.3",
        "tabulate>=0.9",
        "tqdm>=4.66",
        "matplotlib>=3.8",
        "shtab>=1.6",
    ],
    extras_require={
        "prepare": ["gdown"],
        "faiss": ["faiss-cpu"],
        "tensorboard": ["tensorboard"],
        "wandb": ["wandb"],
        # gradio 6.20 takes every argument of the page; it needs Pillow below 13
        "demo": ["gradio>=6.20,<7", "fastapi", "uvicorn"],
        "demo-tests": ["playwright", "httpx", "httpx2"],
        "slurm": ["submitit>=1.5"],
        "emoji-build": ["resvg-py"],
        # onnx and onnxscript write what onnxruntime checks and runs
        "onnx": ["onnx>=1.17", "onnxscript>=0.2", "onnxruntime>=1.20"],
        # clip-anytorch is OpenAI's own model code, which the embedded backbones have to load in
        # and with the other two no test of an extra is skipped
        "dev": [
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "clip-anytorch",
            "faiss-cpu",
            "resvg-py",
            "ruff",
            "import-linter",
            "wandb",
            "submitit",
            "onnx",
            "onnxscript",
            "onnxruntime",
            # the notebook's test
            "nbclient",
            "ipykernel",
        ],
    },
    entry_points={
        "console_scripts": [
            "dassl-prompts = dassl_prompts.__main__:main",
            "fdrd-check = dassl_prompts.fdrd.__main__:check_command",
            "fdrd-build = dassl_prompts.fdrd.__main__:build_command",
        ]
    },
    zip_safe=False,
)
